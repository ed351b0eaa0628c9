"""CLIP's vision tower: a picture -> one vector, in the space that it shares with CLIP's text.

In: a picture, or pixels [B, H, W, 3], normed, at the tower's one size. Out: the projected vector [B, P].
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..layers.linear import Linear
from ..layers.norm import LayerNorm
from .pixels import PixelConfig
from .tower import SquareTowerConfig, tower_fields

# Of the whole CLIP, in whose file the tower may be: its text side, and numbers that only training needs.
UNUSED = ("text_model.", "text_projection.", "logit_scale", "embeddings.position_ids")
PIXELS = PixelConfig(
    image_mean=(0.48145466, 0.4578275, 0.40821073), image_std=(0.26862954, 0.26130258, 0.27577711)
)  # CLIP's, fixed in diffusers' code


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(SquareTowerConfig):
    """image_encoder/config.json, or the part of it that says so of the tower"""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"attention_dropout", "dropout", "initializer_factor", "initializer_range"}
    )
    CLASSES: ClassVar[frozenset[str]] = frozenset({"clip_vision_model"})

    projection_dim: int

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        return super().read(tower_fields(data, cls, projection_dim=data.get("projection_dim")), where)

    @property
    def tokens(self) -> int:
        """Of a picture: its patches, and the one that becomes the vector."""
        return self.patches + 1


class Embeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        dims, patch = config.hidden_size, config.patch_size
        self.class_embedding = mx.zeros((dims,))
        self.patch_embedding = nn.Conv2d(config.num_channels, dims, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, dims)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels).flatten(1, 2)  # [B, patches, D]
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1])).astype(patches.dtype)
        embedded: mx.array = mx.concatenate([first, patches], axis=1) + self.position_embedding.weight
        return embedded


class ClipVisionModel(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        dims = config.hidden_size
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(dims, config.layer_norm_eps)  # so spelled in the files
        self.encoder = config.encoder()
        self.post_layernorm = LayerNorm(dims, config.layer_norm_eps)
        self.visual_projection = Linear(dims, config.projection_dim, bias=False)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))


def prepared(image: Image.Image, side: int) -> np.ndarray:
    """The middle of the picture as a square, [side, side, 3]: its shorter side is made as long."""
    short = min(image.size)
    width, height = (side if size == short else side * size // short for size in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return PIXELS.pixels(image, (width, height))[top : top + side, left : left + side]
