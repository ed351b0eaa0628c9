"""Qwen-Image's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ...errors import ConfigError
from ...loading.config import Range
from ..transformer_config import TransformerConfig

SUPPORTED = "This library has Qwen-Image, Qwen-Image-2512, Qwen-Image-Edit, -Edit-2509, -Edit-2511 and -Layered."


@dataclass(frozen=True, kw_only=True)
class QwenImageConfig(TransformerConfig):
    """transformer/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"QwenImageTransformer2DModel"})
    has_head: ClassVar[bool] = True  # a last norm and layer, which give the velocity
    # In the oldest files; no layer ever had it.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"pooled_projection_dim"})

    joint_attention_dim: int
    num_layers: Annotated[int, Range(1, 1000)]
    out_channels: int
    patch_size: Annotated[int, Range(1, 64)]
    guidance_embeds: bool = False
    zero_cond_t: bool = False  # Qwen-Image-Edit-2511: reference tokens are modulated as at t = 0
    use_additional_t_cond: bool = False  # Qwen-Image-Layered: a learned vector is added to the timestep's
    use_layer3d_rope: bool = False  # Qwen-Image-Layered: pictures are layers, and the last one is taken apart

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        flags = config.use_additional_t_cond, config.use_layer3d_rope, config.zero_cond_t
        if flags[0] != flags[1] or all(flags):
            raise ConfigError(
                f"{where}: 'use_additional_t_cond', 'use_layer3d_rope' and 'zero_cond_t' are {flags}, another "
                f"architecture: Qwen-Image-Layered has the first two, all others neither of them. {SUPPORTED}"
            )
        if config.guidance_embeds:
            raise ConfigError(f"{where}: 'guidance_embeds' is true; no published Qwen-Image has it, nor has this port.")
        return config

    @property
    def is_layered(self) -> bool:
        """Whether it takes a picture apart into layers."""
        return self.use_layer3d_rope


@dataclass(frozen=True, kw_only=True)
class QwenImageControlConfig(QwenImageConfig):
    """A control network's config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"QwenImageControlNetModel"})
    has_head: ClassVar[bool] = False

    extra_condition_channels: Annotated[int, Range(0, 64)] = 0  # a mask's, next to a picture's latents
