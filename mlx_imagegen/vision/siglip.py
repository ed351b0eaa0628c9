"""SigLIP's vision tower: a picture -> a vector a patch, or one in all, for networks that read pictures as prompts.

In: pixels [B, H, W, 3], normed, at the tower's one size. Out: the last hidden state [B, patches, D], normed, or what
the head makes of it, [B, D]. mlx-vlm's copy is not exact: its last norm has another epsilon.
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..layers.attention import attend, split_heads
from ..layers.encoder import EncoderLayer, FeedForward
from ..layers.linear import Linear
from ..layers.norm import LayerNorm
from .pixels import PixelConfig
from .tower import TowerConfig, tower_fields

# How tensors begin that are not read: without the head; and of the whole SigLIP, in whose file the tower may be.
HEAD = ("head.",)
UNUSED = ("text_model.", "logit_scale", "logit_bias")
PIXELS = PixelConfig(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
# transformers' own values, which the published config.json leaves out.
USUAL = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(TowerConfig):
    """image_encoder/config.json, or the part of it that says so of the tower"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "vision_use_head"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        part = data.get("vision_config")
        own = {name: part.get(name, value) for name, value in USUAL.items()} if isinstance(part, dict) else {}
        return super().read(tower_fields(data, cls, **own), where)


class SiglipVisionModel(nn.Module):
    def __init__(self, config: SiglipConfig, pooled: bool = False):
        """`pooled`: with the head, and one vector in all."""
        super().__init__()
        dims, patch = config.hidden_size, config.patch_size
        self.embeddings = {
            "patch_embedding": nn.Conv2d(config.num_channels, dims, patch, patch),
            "position_embedding": nn.Embedding(config.patches, dims),
        }
        layer = dims, config.intermediate_size, config.num_attention_heads
        kind = config.layer_norm_eps, config.hidden_act
        self.encoder = {"layers": [EncoderLayer(*layer, *kind) for _ in range(config.num_hidden_layers)]}
        self.post_layernorm = LayerNorm(dims, config.layer_norm_eps)
        if pooled:
            self.head = PoolingHead(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings["patch_embedding"](pixels)  # [B, rows, columns, D]
        x = x.flatten(1, 2) + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        x = self.post_layernorm(x)
        return self.head(x) if "head" in self else x


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
