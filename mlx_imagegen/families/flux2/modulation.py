"""FLUX.2's adaLN vectors, tabulated for a whole schedule before the loop; their layers are never resident.

In: a component's weights, the schedule's timesteps, guidance where the model is given it. Out: a `Modulation` a step,
the same for every prompt. All blocks of a kind share a vector, so that three layers and the last norm's make
all of them: 0.3 GB of klein 4B's 7.8.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.embed import EmbeddingMLP, rounded_twice, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table, with_ones
from .config import Flux2Config
from .transformer import Modulation

# Field of `Modulation` -> the layer that gives it, how many vectors, and which of them are scales.
LAYERS = {
    "img": ("double_stream_modulation_img.linear", 6, (1, 4)),
    "txt": ("double_stream_modulation_txt.linear", 6, (1, 4)),
    "single": ("single_stream_modulation.linear", 3, (1,)),
    "out": ("norm_out.linear", 2, (0,)),
}


class Flux2Modulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        dims, channels = config.inner_dim, config.timestep_guidance_channels
        self.time_guidance_embed = {"timestep_embedder": EmbeddingMLP(channels, dims, bias=False)}
        if config.guidance_embeds:
            self.time_guidance_embed["guidance_embedder"] = EmbeddingMLP(channels, dims, bias=False)
        for path, chunks, _ in LAYERS.values():
            name, _, leaf = path.partition(".")
            self[name] = {leaf: Linear(dims, chunks * dims, bias=False)}


def tabulate(
    config: Flux2Config, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype, guidance: float = 0.0
) -> dict[str, mx.array]:
    """S timesteps (0..1000) -> [S, vectors, D] for each field of `Modulation`, in `dtype`."""
    vec = silu(_conditioning(config, fill, timesteps, guidance))  # [S, D]
    mx.eval(vec)
    return {name: adaln_table(fill, path, vec, count, dtype, bias=False) for name, (path, count, _) in LAYERS.items()}


def steps(tables: Mapping[str, mx.array]) -> tuple[Modulation, ...]:
    """The tables' rows, evaluated."""
    complete = {name: with_ones(tables[name], *scales) for name, (_, _, scales) in LAYERS.items()}
    made = tuple(Modulation(*rows) for rows in zip(*complete.values(), strict=True))
    mx.eval(made)
    return made


def _conditioning(config: Flux2Config, fill: Fill, timesteps: Sequence[float], guidance: float) -> mx.array:
    """The vector that all adaLN layers read: time, plus guidance where the model is given it."""
    channels = config.timestep_guidance_channels

    def embedded(name: str, numbers: Sequence[float]) -> mx.array:
        embedder = fill(EmbeddingMLP(channels, config.inner_dim, bias=False), f"time_guidance_embed.{name}")
        out: mx.array = embedder(sinusoids(numbers, channels))
        return out

    time = embedded("timestep_embedder", rounded_twice(timesteps))
    return time + embedded("guidance_embedder", [guidance * 1000.0]) if config.guidance_embeds else time
