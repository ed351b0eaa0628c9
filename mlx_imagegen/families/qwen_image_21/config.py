"""Qwen-Image-2.1's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ...errors import ConfigError
from ...loading.config import Range
from ..transformer_config import TransformerConfig
from .spec import TRANSFORMER


@dataclass(frozen=True, kw_only=True)
class QwenImage21Config(TransformerConfig):
    """transformer/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({TRANSFORMER})

    context_in_dim: int
    mlp_ratio: int
    num_layers: Annotated[int, Range(1, 1000)]
    out_channels: int
    patch_size: Annotated[int, Range(1, 1)] = 1
    eps: float = 1e-6
    causal_condition: bool = True  # text and references are modulated as at t = 0

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        if not config.causal_condition:
            raise ConfigError(
                f"{where}: field 'causal_condition' is false, which no published Qwen-Image-2.1 has, nor this port; "
                "take the file from the model's repository."
            )
        return config
