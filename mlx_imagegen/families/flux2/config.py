"""FLUX.2's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import ConfigError
from ...loading.config import Config

AXES = 4  # of positions: time, row, column, place in the text


@dataclass(frozen=True)
class Flux2Config(Config):
    """transformer/config.json"""

    attention_head_dim: int
    guidance_embeds: bool  # dev alone: guidance is a number that the transformer is given
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: int
    num_layers: int
    num_single_layers: int
    axes_dims_rope: tuple[int, ...]
    rope_theta: float
    mlp_ratio: float = 3.0
    eps: float = 1e-6
    timestep_guidance_channels: int = 256
    out_channels: int | None = None
    patch_size: int = 1  # the latents' norm has made cells of 2 x 2 before the transformer

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        axes = config.axes_dims_rope
        if len(axes) != AXES or sum(axes) != config.attention_head_dim or any(dims < 2 or dims % 2 for dims in axes):
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {list(axes)} must be {AXES} even numbers that add up to "
                f"'attention_head_dim' {config.attention_head_dim}; take the file from the model's repository."
            )
        if config.patch_size != 1:
            raise ConfigError(f"{where}: 'patch_size' is {config.patch_size}; every published FLUX.2 has 1.")
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.inner_dim * self.mlp_ratio)
