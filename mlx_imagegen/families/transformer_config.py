"""What transformers' config.json files have in common, as diffusers writes them.

In: a config.json. Out: the fields that every such file has, checked. Must not know: any family's own fields.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ..errors import ConfigError
from ..escaping import shown
from ..loading.config import HEADS, LAYERS, Config


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    AXES: ClassVar[int] = 3  # of positions

    attention_head_dim: int
    in_channels: int
    num_attention_heads: Annotated[int, HEADS]
    num_layers: Annotated[int, LAYERS]
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)  # older files lack the key; this is diffusers' default

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        axes, head = config.axes_dims_rope, config.attention_head_dim
        if len(axes) != cls.AXES or sum(axes) != head or any(dims < 2 or dims % 2 for dims in axes):
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {shown(list(axes))} must be {cls.AXES} even numbers that add up to "
                f"'attention_head_dim' {head}; take the file from the model's repository."
            )
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
