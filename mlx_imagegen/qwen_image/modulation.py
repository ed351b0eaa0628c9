"""Qwen-Image's adaLN linears, tabulated for a whole schedule before the loop and never resident.

In: a component's weights and the schedule's timesteps. Out: one `Modulation` a step, the same for every prompt.
The linears are read one at a time, used on all steps at once and dropped: 33% of the transformer passes through memory
in pieces of at most 113 MB (bf16) instead of lying in it for the whole loop.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.activation import silu
from ..layers.embed import FREQUENCIES, EmbeddingMLP, sinusoids
from ..layers.linear import Linear
from .config import QwenImageConfig
from .transformer import Modulation

# Fills an empty layer from the checkpoint, by the layer's path.
Fill = Callable[[nn.Module, str], nn.Module]


class QwenImageModulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names; used as shapes, filled layer by layer."""

    def __init__(self, config: QwenImageConfig):
        super().__init__()
        dims = config.inner_dim
        self.time_text_embed = {"timestep_embedder": EmbeddingMLP(FREQUENCIES, dims)}
        # The checkpoint calls the linears img_mod.1 and txt_mod.1; 0 is the SiLU before them.
        self.transformer_blocks = [
            {"img_mod": {"1": Linear(dims, 6 * dims)}, "txt_mod": {"1": Linear(dims, 6 * dims)}}
            for _ in range(config.num_layers)
        ]
        self.norm_out = {"linear": Linear(dims, 2 * dims)}


def tabulate(config: QwenImageConfig, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> list[Modulation]:
    """S timesteps (0..1000) -> S modulations, in `dtype`. With zero_cond_t a row for t = 0 is shared by all steps."""
    empty = QwenImageModulators(config)
    embedder = fill(empty.time_text_embed["timestep_embedder"], "time_text_embed.timestep_embedder")
    times = np.array([*timesteps, 0.0] if config.zero_cond_t else timesteps, np.float32) / np.float32(1000)
    vec = silu(embedder(sinusoids(times.tolist(), scale=1000.0)))  # [S (+ 1), D]
    mx.eval(vec)

    def table(linear: Linear, path: str, chunks: int) -> mx.array:
        out = fill(linear, path)(vec).reshape(vec.shape[0], chunks, -1).astype(dtype)
        mx.eval(out)  # now, so that this layer's weight can go before the next is read
        return out

    img: list[mx.array] = []
    txt: list[mx.array] = []
    for i, block in enumerate(empty.transformer_blocks):
        img.append(table(block["img_mod"].pop("1"), f"transformer_blocks.{i}.img_mod.1", 6))
        txt.append(table(block["txt_mod"].pop("1"), f"transformer_blocks.{i}.txt_mod.1", 6))
    out = table(empty.norm_out.pop("linear"), "norm_out.linear", 2)
    imgs, txts = mx.stack(img, axis=1), mx.stack(txt, axis=1)  # [S (+ 1), layers, 6, D]
    mx.eval(imgs, txts)
    clean = imgs[-1] if config.zero_cond_t else None
    return [Modulation(imgs[step], txts[step], out[step], clean) for step in range(len(timesteps))]
