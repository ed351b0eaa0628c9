"""SigLIP's and SigLIP2's vision towers: a picture -> a vector a patch, for networks that read pictures as prompts.

In: for SigLIP pixels [B, H, W, 3], normed, at the tower's one size; for SigLIP2 the patches of a picture of any size.
Out: the last hidden state [B, patches, D], normed. The head that pools it is not used here. mlx-vlm's copy is not
exact: its last norm has another epsilon.
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.encoder import EncoderLayer
from ..layers.linear import Linear
from ..layers.norm import LayerNorm
from ..layers.patches import Grid
from ..loading.config import Range
from .tower import SquareTowerConfig, TowerConfig

UNUSED = ("head.",)  # how tensors begin that are not read


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(SquareTowerConfig):
    """image_encoder/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "vision_use_head"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})


@dataclass(frozen=True, kw_only=True)
class Siglip2Config(TowerConfig):
    """siglip/config.json"""

    IGNORED: ClassVar[frozenset[str]] = SiglipConfig.IGNORED
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip2_vision_model"})

    num_patches: Annotated[int, Range(1, 2**16)]  # of the square that has a position embedding for each

    @property
    def sound(self) -> dict[str, bool]:
        return super().sound | {"num_patches": self.side**2 == self.num_patches}

    @property
    def side(self) -> int:
        return math.isqrt(self.num_patches)


class Encoder(nn.Module):
    """What both towers do with embedded patches."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        layer = config.hidden_size, config.intermediate_size, config.num_attention_heads
        kind = config.layer_norm_eps, config.hidden_act
        self.encoder = {"layers": [EncoderLayer(*layer, *kind) for _ in range(config.num_hidden_layers)]}
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def encode(self, x: mx.array) -> mx.array:
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.post_layernorm(x)


class SiglipVisionModel(Encoder):
    def __init__(self, config: SiglipConfig):
        super().__init__(config)
        dims, patch = config.hidden_size, config.patch_size
        self.embeddings = {
            "patch_embedding": nn.Conv2d(config.num_channels, dims, patch, patch),
            "position_embedding": nn.Embedding(config.patches, dims),
        }

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings["patch_embedding"](pixels)  # [B, rows, columns, D]
        return self.encode(x.flatten(1, 2) + self.embeddings["position_embedding"].weight)


class Siglip2VisionModel(Encoder):
    def __init__(self, config: Siglip2Config):
        super().__init__(config)
        dims = config.hidden_size
        self.embeddings = {
            "patch_embedding": Linear(config.num_channels * config.patch_size**2, dims),
            "position_embedding": nn.Embedding(config.num_patches, dims),
        }
        self._side = config.side

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """patches [1, rows * columns, values]"""
        x = self.embeddings["patch_embedding"](patches)
        return self.encode(x + self._positions(grid).astype(x.dtype))

    def _positions(self, grid: Grid) -> mx.array:
        """The square of position embeddings, stretched or shrunk to a grid: [rows * columns, D]"""
        square = self.embeddings["position_embedding"].weight.astype(mx.float32)
        rows, columns = (mx.array(resampling(self._side, count)) for count in grid)
        down = rows @ square.reshape(self._side, -1)
        across: mx.array = columns @ down.reshape(grid[0], self._side, -1)
        return across.flatten(0, 1)


def resampling(size: int, count: int) -> np.ndarray:
    """Weights [count, size] by which `size` values become `count`: torch's antialiased bilinear interpolation."""
    scale = np.float32(size) / np.float32(count)
    centres = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    distances = np.abs(np.arange(size, dtype=np.float32) - centres[:, None])
    weights = np.maximum(1 - distances / max(scale, np.float32(1)), 0)
    normed: np.ndarray = weights / weights.sum(1, keepdims=True)
    return normed
