"""FLUX.3's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import ConfigError
from ...loading.config import Config

AXES = 4  # of positions: time, row, column, place in the text or number of the reference


@dataclass(frozen=True)
class Flux3Config(Config):
    """transformer/config.json"""

    attention_head_dim: int
    axes_dims_rope: tuple[int, ...]
    cond_in_channels: int  # of reference pictures
    flow_map: bool  # distilled: given the time that a step ends at as well
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: int
    num_layers: int  # of each kind of token alone
    num_single_layers: int  # of all tokens together
    rope_theta: float
    eps: float = 1e-6
    mlp_ratio: float = 3.0
    timestep_channels: int = 256

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        axes = config.axes_dims_rope
        if len(axes) != AXES or sum(axes) != config.attention_head_dim or any(dims < 2 or dims % 2 for dims in axes):
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {list(axes)} must be {AXES} even numbers that add up to "
                f"'attention_head_dim' {config.attention_head_dim}; take the file from the model's repository."
            )
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.inner_dim * self.mlp_ratio)
