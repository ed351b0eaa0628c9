"""FLUX.2's adaLN vectors, tabulated for a whole schedule before the loop; their layers are never resident.

In: a component's weights, the schedule's timesteps, guidance where the model is given it. Out: `Tables`, a `Modulation`
a step, the same for every prompt. All blocks of a kind share a vector, so that three layers and the last norm's make
all of them: 0.3 GB of klein 4B's 7.8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...layers.activation import silu
from ...layers.embed import EmbeddingMLP, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table, with_ones
from .config import Flux2Config
from .transformer import Modulation

# Field of `Modulation` -> the layer that gives it, and how many vectors.
LAYERS = {
    "img": ("double_stream_modulation_img.linear", 6),
    "txt": ("double_stream_modulation_txt.linear", 6),
    "single": ("single_stream_modulation.linear", 3),
    "out": ("norm_out.linear", 2),
}
SCALES = 1, 4  # of a double block's vectors


class Flux2Modulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        dims, channels = config.inner_dim, config.timestep_guidance_channels
        self.time_guidance_embed = {"timestep_embedder": EmbeddingMLP(channels, dims, bias=False)}
        if config.guidance_embeds:
            self.time_guidance_embed["guidance_embedder"] = EmbeddingMLP(channels, dims, bias=False)
        for path, chunks in LAYERS.values():
            name, _, leaf = path.partition(".")
            self[name] = {leaf: Linear(dims, chunks * dims, bias=False)}


class Tables(NamedTuple):
    """A schedule's adaLN vectors: img and txt [S, 6, D], single [S, 3, D], out [S, 2, D]."""

    img: mx.array
    txt: mx.array
    single: mx.array
    out: mx.array

    def steps(self) -> tuple[Modulation, ...]:
        img, txt = (with_ones(table, *SCALES) for table in (self.img, self.txt))
        tables = img, txt, with_ones(self.single, SCALES[0]), with_ones(self.out, 0)
        steps = tuple(Modulation(*rows) for rows in zip(*tables, strict=True))
        mx.eval(steps)
        return steps


def tabulate(config: Flux2Config, fill: Fill, timesteps: Sequence[float], guidance: float, dtype: mx.Dtype) -> Tables:
    """S timesteps (0..1000) -> S modulations, in `dtype`."""
    vec = silu(_conditioning(config, fill, timesteps, guidance))  # [S, D]
    mx.eval(vec)
    return Tables(
        **{name: adaln_table(fill, path, vec, chunks, dtype, bias=False) for name, (path, chunks) in LAYERS.items()}
    )


def _conditioning(config: Flux2Config, fill: Fill, timesteps: Sequence[float], guidance: float) -> mx.array:
    """The vector that all adaLN layers read: time, plus guidance where the model is given it."""
    channels = config.timestep_guidance_channels

    def embedded(name: str, numbers: Sequence[float]) -> mx.array:
        embedder = fill(EmbeddingMLP(channels, config.inner_dim, bias=False), f"time_guidance_embed.{name}")
        out: mx.array = embedder(sinusoids(numbers, channels))
        return out

    # diffusers divides by 1000, and multiplies again: float32 numbers that were rounded twice.
    times = np.array(timesteps, np.float32) / np.float32(1000) * np.float32(1000)
    time = embedded("timestep_embedder", times.tolist())
    return time + embedded("guidance_embedder", [guidance * 1000.0]) if config.guidance_embeds else time
