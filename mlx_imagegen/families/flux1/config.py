"""FLUX.1's config.json files, field by field, as diffusers writes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ...errors import ConfigError
from ...escaping import shown
from ...loading.config import HEADS, LAYERS, Config, Range


@dataclass(frozen=True)
class FluxConfig(Config):
    """transformer/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"FluxTransformer2DModel"})
    has_head: ClassVar[bool] = True  # a last norm and layer, which give the velocity

    attention_head_dim: int
    guidance_embeds: bool
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: Annotated[int, HEADS]
    num_layers: Annotated[int, LAYERS]
    num_single_layers: Annotated[int, LAYERS]
    pooled_projection_dim: int
    patch_size: Annotated[int, Range(1, 1)] = 1  # the pipeline packs 2x2 before the transformer
    out_channels: int | None = None
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)  # older files lack the key; this is diffusers' default

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        axes = config.axes_dims_rope
        if len(axes) != 3 or sum(axes) != config.attention_head_dim or any(dims < 2 or dims % 2 for dims in axes):
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {shown(list(axes))} must be three even numbers that add up to "
                f"'attention_head_dim' {config.attention_head_dim}; take the file from the model's repository."
            )
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class FluxControlConfig(FluxConfig):
    """A control network's config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"FluxControlNetModel"})
    has_head: ClassVar[bool] = False

    patch_size: Annotated[int, Range(1, 64)] = 1  # XLabs': of what their convolutions give
    num_mode: int | None = None  # kinds of pictures that it is told apart
    conditioning_embedding_channels: int | None = None  # XLabs': convolutions look at the picture's pixels
