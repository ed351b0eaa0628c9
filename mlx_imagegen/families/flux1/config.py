"""FLUX.1's config.json files, field by field, as diffusers writes them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...loading.config import LAYERS, Range
from ..transformer_config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class FluxConfig(TransformerConfig):
    """transformer/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"FluxTransformer2DModel"})
    has_head: ClassVar[bool] = True  # a last norm and layer, which give the velocity

    guidance_embeds: bool
    joint_attention_dim: int
    num_single_layers: Annotated[int, LAYERS]
    pooled_projection_dim: int
    patch_size: Annotated[int, Range(1, 1)] = 1  # the pipeline packs 2x2 before the transformer
    out_channels: int | None = None


@dataclass(frozen=True, kw_only=True)
class FluxControlConfig(FluxConfig):
    """A control network's config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"FluxControlNetModel"})
    has_head: ClassVar[bool] = False

    patch_size: Annotated[int, Range(1, 64)] = 1  # XLabs': of what their convolutions give
    num_mode: int | None = None  # kinds of pictures that it is told apart
    conditioning_embedding_channels: int | None = None  # XLabs': convolutions look at the picture's pixels
