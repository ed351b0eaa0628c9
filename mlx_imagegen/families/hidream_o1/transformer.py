"""HiDream-O1's body: a Qwen3-VL decoder that reads text tokens and raw pixel patches in one sequence.

In: patches [1, L, C p p], a timestep, the prompt's keys and values, rope tables. Out: the model's idea of the clean
patches. Text attends causally and never sees the pixels, so its keys and values are the same at every step: `prefix`
computes them once, and a step runs the timestep token and the patches alone, attending to everything, without a mask.
The residual stream is float32 whatever the weights are, and so are the small layers at both ends (precision.py).
Must not know: samplers, noise, prompts' words, files. Parameters carry the checkpoint's names below `model.`.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...layers.attention import KeyValues
from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.embed import TimestepEmbedder
from ...layers.linear import Linear
from ...precision import RESIDUAL_DTYPE
from ...text.qwen import LanguageModel, Rope
from .config import HiDreamConfig


class HiDreamTransformer(nn.Module):
    def __init__(self, config: HiDreamConfig):
        super().__init__()
        dims, patch = config.text.hidden_size, config.patch
        values = patch.in_channels * patch.patch_size**2
        self.language_model = LanguageModel(config.text)
        self.t_embedder1 = TimestepEmbedder(dims, patch.timestep_freq_dim)
        self.x_embedder = PatchEmbedder(values, patch.bottleneck_dim, dims)
        self.final_layer2 = {"linear": Linear(dims, values)}

    def prefix(self, x: mx.array, rope: Rope, deepstack: Sequence[mx.array] = ()) -> list[KeyValues]:
        """Text embeddings (pictures' features among them) [1, T, D] -> every layer's keys and values."""
        return self.language_model.keys_values(x.astype(RESIDUAL_DTYPE), rope, deepstack)

    def __call__(
        self,
        patches: mx.array,
        timestep: float,
        rope: Rope,
        prefix: Sequence[KeyValues],
        references: mx.array | None = None,
        after_first: AfterFirstBlock = run_all,
    ) -> mx.array:
        """patches [1, L, C p p], timestep 0..1000 -> x0, as patches. `references` [1, R, D]: their patches,
        embedded."""
        parts = [self.time(timestep), self.embed(patches)]
        if references is not None:
            parts.append(references)
        x = mx.concatenate(parts, axis=1)  # [1, 1 + L + R, D]
        own = slice(1, 1 + patches.shape[1])
        return self.final_layer2["linear"](self.language_model.features_of(x, rope, prefix, own, after_first))

    def embed(self, patches: mx.array) -> mx.array:
        """[1, L, C p p] -> [1, L, D]"""
        return self.x_embedder(patches.astype(RESIDUAL_DTYPE))

    def time(self, timestep: float) -> mx.array:
        """The embedding that stands in the timestep token's place, [1, 1, D]."""
        # The model counts from noise (0) to picture (1), and upstream does so in float32.
        clean = np.float32(1) - np.float32(timestep) / np.float32(1000)
        return self.t_embedder1([float(clean * np.float32(1000))])[None]


class PatchEmbedder(nn.Module):
    """A linear layer of low rank."""

    def __init__(self, values: int, bottleneck: int, dims: int):
        super().__init__()
        self.proj1 = Linear(values, bottleneck, bias=False)
        self.proj2 = Linear(bottleneck, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj2(self.proj1(x))
