"""FLUX.3's adaLN vectors, tabulated for a whole schedule before the loop; their layers are never resident.

In: a component's weights and the schedule's timesteps. Out: a `Modulation` a step, the same for every prompt. The
picture is modulated as its time says, text and references as time 0 does; a distilled model adds the time that the step
ends at, to all of them.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.embed import EmbeddingMLP, rounded_twice, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table, with_ones
from .config import Flux3Config
from .transformer import IMAGE, KINDS, Modulation

OWN, JOINT, OUT = "early_stream_modulations", "single_stream_modulations", "norm_out"
TIME, TARGET = "timestep_embedder", "target_timestep_embedder"


class Flux3Modulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: Flux3Config):
        super().__init__()
        dims = config.inner_dim
        for name in (TIME, TARGET) if config.flow_map else (TIME,):
            self[name] = EmbeddingMLP(config.timestep_channels, dims, bias=False)
        for name in (OWN, JOINT):
            self[name] = {kind: {"linear": Linear(dims, 3 * dims, bias=False)} for kind in KINDS}
        self.norm_out = {"linear": Linear(dims, 2 * dims, bias=False)}


def tabulate(config: Flux3Config, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> dict[str, mx.array]:
    """S timesteps (0..1000) -> [S, chunks, D] for each layer, by its path, in `dtype`."""
    picture = embedded(config, fill, TIME, timesteps)  # [S, D]
    still = embedded(config, fill, TIME, [0.0])  # [1, D]: of what has no noise
    if config.flow_map:
        target = embedded(config, fill, TARGET, [*timesteps[1:], 0.0])
        picture, still = picture + target, still + target
    picture, still = silu(picture), silu(mx.broadcast_to(still, picture.shape))
    mx.eval(picture, still)
    paths = {f"{name}.{kind}": picture if kind == IMAGE else still for name in (OWN, JOINT) for kind in KINDS}
    tables = {path: adaln_table(fill, f"{path}.linear", vec, 3, dtype, bias=False) for path, vec in paths.items()}
    return tables | {OUT: adaln_table(fill, f"{OUT}.linear", picture, 2, dtype, bias=False)}


def steps(tables: Mapping[str, mx.array]) -> tuple[Modulation, ...]:
    """The tables' rows, evaluated."""
    tables = {path: with_ones(table, 0 if path == OUT else 1) for path, table in tables.items()}
    made = tuple(
        Modulation(
            {kind: tables[f"{OWN}.{kind}"][index] for kind in KINDS},
            {kind: tables[f"{JOINT}.{kind}"][index] for kind in KINDS},
            tables[OUT][index],
        )
        for index in range(len(tables[OUT]))
    )
    mx.eval(made)
    return made


def embedded(config: Flux3Config, fill: Fill, name: str, timesteps: Sequence[float]) -> mx.array:
    embedder = fill(EmbeddingMLP(config.timestep_channels, config.inner_dim, bias=False), name)
    out: mx.array = embedder(sinusoids(rounded_twice(timesteps), config.timestep_channels))
    return out
