"""FLUX.2's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import ConfigError
from ..cell_files import CellConfig


@dataclass(frozen=True, kw_only=True)
class Flux2Config(CellConfig):
    """transformer/config.json"""

    guidance_embeds: bool  # dev alone: guidance is a number that the transformer is given
    timestep_guidance_channels: int = 256
    out_channels: int | None = None
    patch_size: int = 1  # the latents' norm has made cells of 2 x 2 before the transformer

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        if config.patch_size != 1:
            raise ConfigError(f"{where}: 'patch_size' is {config.patch_size}; every published FLUX.2 has 1.")
        return config
