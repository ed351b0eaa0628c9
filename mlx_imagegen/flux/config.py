"""FLUX.1's config.json files, field by field, as diffusers writes them."""

from dataclasses import dataclass
from typing import ClassVar

from ..config import Config


@dataclass(frozen=True)
class FluxConfig(Config):
    """transformer/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset()

    attention_head_dim: int
    guidance_embeds: bool
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: int
    num_layers: int
    num_single_layers: int
    pooled_projection_dim: int
    patch_size: int = 1  # the pipeline packs 2x2 before the transformer, whatever this says; only 1 is ever published
    out_channels: int | None = None
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)  # older files lack the key; this is diffusers' default

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
