"""Qwen-Image-2.1's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import ConfigError
from ...escaping import quoted
from ...loading.config import Config
from .spec import TRANSFORMER


@dataclass(frozen=True)
class QwenImage21Config(Config):
    """transformer/config.json"""

    attention_head_dim: int
    context_in_dim: int
    in_channels: int
    mlp_ratio: int
    num_attention_heads: int
    num_layers: int
    out_channels: int
    patch_size: int = 1
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    eps: float = 1e-6
    causal_condition: bool = True  # text and references are modulated as at t = 0

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        kind = data.get("_class_name", TRANSFORMER)
        if kind != TRANSFORMER:
            raise ConfigError(
                f"{where}: this is a {quoted(kind)}, another architecture than Qwen-Image-2.1's {TRANSFORMER}; take "
                "the file from the model's repository."
            )
        config = super().read(data, where)
        counts = ("attention_head_dim", "num_attention_heads", "num_layers", "mlp_ratio")
        sound = {
            "patch_size": config.patch_size == 1,
            "causal_condition": config.causal_condition,
            "axes_dims_rope": sum(config.axes_dims_rope) == config.attention_head_dim
            and len(config.axes_dims_rope) == 3,
            **{name: getattr(config, name) > 0 for name in counts},
        }
        if odd := next((name for name, fits in sound.items() if not fits), None):
            raise ConfigError(
                f"{where}: field '{odd}' is {getattr(config, odd)}, which no published Qwen-Image-2.1 has, nor this "
                "port; take the file from the model's repository."
            )
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
