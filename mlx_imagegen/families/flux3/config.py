"""FLUX.3's transformer config, field by field, as diffusers writes it."""

from dataclasses import dataclass

from ..cell_files import CellConfig


@dataclass(frozen=True, kw_only=True)
class Flux3Config(CellConfig):
    """transformer/config.json. `num_layers` are of each kind of token alone, `num_single_layers` of all together."""

    cond_in_channels: int  # of reference pictures
    flow_map: bool  # distilled: given the time that a step ends at as well
    timestep_channels: int = 256
