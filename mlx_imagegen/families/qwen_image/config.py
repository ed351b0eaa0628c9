"""Qwen-Image's transformer config, field by field, as diffusers writes it.

Relatives with another architecture are refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ...errors import ConfigError
from ...escaping import quoted, shown
from ...loading.config import HEADS, LAYERS, Config, Range

SUPPORTED = "This library has Qwen-Image, Qwen-Image-2512, Qwen-Image-Edit, -Edit-2509, -Edit-2511 and -Layered."


@dataclass(frozen=True)
class QwenImageConfig(Config):
    """transformer/config.json"""

    CLASS: ClassVar[str] = "QwenImageTransformer2DModel"
    has_head: ClassVar[bool] = True  # a last norm and layer, which give the velocity
    # In the oldest files; no layer ever had it.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"pooled_projection_dim"})

    attention_head_dim: int
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: Annotated[int, HEADS]
    num_layers: Annotated[int, LAYERS]
    out_channels: int
    patch_size: Annotated[int, Range(1, 64)]
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    guidance_embeds: bool = False
    zero_cond_t: bool = False  # Qwen-Image-Edit-2511: reference tokens are modulated as at t = 0
    use_additional_t_cond: bool = False  # Qwen-Image-Layered: a learned vector is added to the timestep's
    use_layer3d_rope: bool = False  # Qwen-Image-Layered: pictures are layers, and the last one is taken apart

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        kind = data.get("_class_name", cls.CLASS)
        if kind != cls.CLASS:
            known = "Qwen-Image-2.1" if kind == "QwenImage21Transformer2DModel" else f"a {quoted(kind)}"
            raise ConfigError(f"{where}: this is {known}, another architecture. {SUPPORTED}")
        config = super().read(data, where)
        flags = config.use_additional_t_cond, config.use_layer3d_rope, config.zero_cond_t
        if flags[0] != flags[1] or all(flags):
            raise ConfigError(
                f"{where}: 'use_additional_t_cond', 'use_layer3d_rope' and 'zero_cond_t' are {flags}, another "
                f"architecture: Qwen-Image-Layered has the first two, all others neither of them. {SUPPORTED}"
            )
        if config.guidance_embeds:
            raise ConfigError(f"{where}: 'guidance_embeds' is true; no published Qwen-Image has it, nor has this port.")
        counts = ("attention_head_dim", "num_attention_heads", "num_layers", "patch_size")
        if odd := next((name for name in counts if getattr(config, name) < 1), None):
            raise ConfigError(
                f"{where}: field '{odd}' is {shown(getattr(config, odd))}, where a count from 1 is needed; take the "
                "file from the model's repository."
            )
        if sum(config.axes_dims_rope) != config.attention_head_dim:
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {shown(list(config.axes_dims_rope))} must add up to 'attention_head_dim' "
                f"{config.attention_head_dim}; take the file from the model's repository."
            )
        return config

    @property
    def is_layered(self) -> bool:
        """Whether it takes a picture apart into layers."""
        return self.use_layer3d_rope

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class QwenImageControlConfig(QwenImageConfig):
    """A control network's config.json"""

    CLASS: ClassVar[str] = "QwenImageControlNetModel"
    has_head: ClassVar[bool] = False

    extra_condition_channels: Annotated[int, Range(0, 64)] = 0  # a mask's, next to a picture's latents
