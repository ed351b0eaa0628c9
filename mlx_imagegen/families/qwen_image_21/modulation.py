"""The layers that give Qwen-Image-2.1's modulation, tabulated for a whole schedule before the loop and never resident.

In: a component's weights and the schedule's timesteps. Out: a `Modulation` a step and one at t = 0, the same for every
prompt.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.embed import FREQUENCIES, EmbeddingMLP, rounded_twice, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table, with_ones
from .config import QwenImage21Config
from .transformer import Modulation

EMBEDDER, BLOCKS, OUT = "time_text_embed.timestep_embedder", "modulation.1", "norm_out.linear"
CHUNKS = 4  # scale and gate, for attention and for the MLP


class QwenImage21Modulators(nn.Module):
    """The layers by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: QwenImage21Config):
        super().__init__()
        dims = config.inner_dim
        self.time_text_embed = {"timestep_embedder": EmbeddingMLP(FREQUENCIES, dims, bias=False)}
        self.modulation = {"1": Linear(dims, CHUNKS * dims, bias=False)}  # 0 is the SiLU before it
        self.norm_out = {"linear": Linear(dims, dims, bias=False)}


def steps(tables: Mapping[str, mx.array]) -> tuple[Modulation, ...]:
    """The tables' rows, evaluated."""
    blocks = with_ones(tables["blocks"], 0, 2)
    rows = tuple(Modulation(*row) for row in zip(blocks, 1 + tables["out"], strict=True))
    mx.eval(rows)
    return rows


def tabulate(config: QwenImage21Config, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> dict[str, mx.array]:
    """S timesteps (0..1000) -> blocks [S + 1, 4, D] and out [S + 1, D] in `dtype`, the row at t = 0 last; gates have
    passed the tanh."""
    embedder = fill(EmbeddingMLP(FREQUENCIES, config.inner_dim, bias=False), EMBEDDER)
    vec = silu(embedder(sinusoids(rounded_twice([*timesteps, 0.0]))))  # [S + 1, D]
    mx.eval(vec)
    blocks = adaln_table(fill, BLOCKS, vec, CHUNKS, mx.float32, bias=False)
    scale, gate, mlp_scale, mlp_gate = mx.split(blocks, CHUNKS, axis=1)
    blocks = mx.concatenate([scale, mx.tanh(gate), mlp_scale, mx.tanh(mlp_gate)], axis=1).astype(dtype)
    out = adaln_table(fill, OUT, vec, 1, dtype, bias=False)[:, 0]
    mx.eval(blocks, out)
    return {"blocks": blocks, "out": out}
