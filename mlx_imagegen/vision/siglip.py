"""SigLIP's and SigLIP2's vision towers: a picture -> a vector a patch, for networks that read pictures as prompts.

In: for SigLIP pixels [B, H, W, 3], normed, at the tower's one size; for SigLIP2 the patches of a picture of any size.
Out: the last hidden state [B, patches, D], normed; or what SigLIP's head makes of it, [B, D]. mlx-vlm's copy is not
exact: its last norm has another epsilon.
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.attention import attend, split_heads
from ..layers.encoder import FeedForward
from ..layers.linear import Linear
from ..layers.norm import LayerNorm
from ..layers.patches import Grid
from ..loading.config import Range
from .pixels import PixelConfig
from .tower import SquareTowerConfig, TowerConfig, tower_fields

# How tensors begin that are not read: without the head; and of the whole SigLIP, in whose file the tower may be.
UNUSED = ("head.",)
OF_THE_WHOLE = ("text_model.", "logit_scale", "logit_bias")
PIXELS = PixelConfig(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
# transformers' own values, which the whole SigLIP's config.json leaves out.
USUAL = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(SquareTowerConfig):
    """image_encoder/config.json, or the part of it that says so of the tower"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "vision_use_head"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        part = data.get("vision_config")
        own = {name: part.get(name, value) for name, value in USUAL.items()} if isinstance(part, dict) else {}
        return super().read(tower_fields(data, cls, **own), where)


@dataclass(frozen=True, kw_only=True)
class Siglip2Config(TowerConfig):
    """siglip/config.json"""

    IGNORED: ClassVar[frozenset[str]] = SiglipConfig.IGNORED
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip2_vision_model"})

    num_patches: Annotated[int, Range(1, 2**16)]  # of the square that has a position embedding for each

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        if self.side**2 != self.num_patches:
            yield "num_patches", "a square number"

    @property
    def side(self) -> int:
        return math.isqrt(self.num_patches)


class Encoder(nn.Module):
    """What both towers do with embedded patches."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.encoder = config.encoder()
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def encode(self, x: mx.array) -> mx.array:
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.post_layernorm(x)


class PoolingAttention(nn.Module):
    """torch's: the layers of q, k and v lie in one tensor."""

    def __init__(self, dims: int, heads: int):
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = mx.zeros((3 * dims, dims)), mx.zeros((3 * dims,))
        self.out_proj = Linear(dims, dims)
        self._heads = heads

    def __call__(self, query: mx.array, x: mx.array) -> mx.array:
        weights, biases = mx.split(self.in_proj_weight, 3), mx.split(self.in_proj_bias, 3)
        q, k, v = (
            split_heads(each @ weight.T + bias, self._heads)
            for each, weight, bias in zip((query, x, x), weights, biases, strict=True)
        )
        return self.out_proj(attend(q, k, v))


class PoolingHead(nn.Module):
    """One learned query attends to all patches: [B, patches, D] -> [B, D]."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        dims = config.hidden_size
        self.probe = mx.zeros((1, 1, dims))
        self.attention = PoolingAttention(dims, config.num_attention_heads)
        self.layernorm = LayerNorm(dims, config.layer_norm_eps)
        self.mlp = FeedForward(dims, config.intermediate_size, config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        query = mx.broadcast_to(self.probe, (len(x), 1, x.shape[-1])).astype(x.dtype)
        pooled = self.attention(query, x)
        out: mx.array = (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
        return out


class SiglipVisionModel(Encoder):
    def __init__(self, config: SiglipConfig, pooled: bool = False):
        """`pooled`: with the head, and one vector in all."""
        super().__init__(config)
        dims, patch = config.hidden_size, config.patch_size
        self.embeddings = {
            "patch_embedding": nn.Conv2d(config.num_channels, dims, patch, patch),
            "position_embedding": nn.Embedding(config.patches, dims),
        }
        if pooled:
            self.head = PoolingHead(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings["patch_embedding"](pixels)  # [B, rows, columns, D]
        x = self.encode(x.flatten(1, 2) + self.embeddings["position_embedding"].weight)
        return self.head(x) if "head" in self else x


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
