"""FLUX.1's adaLN linears, tabulated for a whole schedule before the loop and never resident.

In: a component's weights, the schedule's timesteps, guidance and pooled prompts. Out: one `Modulation` a prompt and
step. 27% of the transformer passes through memory in pieces of at most 113 MB (bf16) instead of lying in it for the
whole loop.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.embed import FREQUENCIES, EmbeddingMLP, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table
from .config import FluxConfig
from .transformer import Modulation


class FluxModulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        dims = config.inner_dim
        self.time_text_embed = {
            "timestep_embedder": EmbeddingMLP(FREQUENCIES, dims),
            "text_embedder": EmbeddingMLP(config.pooled_projection_dim, dims),
        }
        if config.guidance_embeds:
            self.time_text_embed["guidance_embedder"] = EmbeddingMLP(FREQUENCIES, dims)
        self.transformer_blocks = [
            {"norm1": {"linear": Linear(dims, 6 * dims)}, "norm1_context": {"linear": Linear(dims, 6 * dims)}}
            for _ in range(config.num_layers)
        ]
        self.single_transformer_blocks = [
            {"norm": {"linear": Linear(dims, 3 * dims)}} for _ in range(config.num_single_layers)
        ]
        self.norm_out = {"linear": Linear(dims, 2 * dims)}


def tabulate(
    config: FluxConfig,
    fill: Fill,
    timesteps: Sequence[float],
    guidance: float,
    pooled: Sequence[mx.array],
    dtype: mx.Dtype,
) -> list[list[Modulation]]:
    """S timesteps (0..1000), pooled P x [1, D] -> P lists of S modulations, in `dtype`, evaluated."""
    doubles, singles = range(config.num_layers), range(config.num_single_layers)
    vec = silu(_conditioning(config, fill, timesteps, guidance, pooled))  # [P * S, D]

    def table(path: str, chunks: int) -> mx.array:
        out = adaln_table(fill, path, vec, chunks, dtype)
        return out.reshape(len(pooled), len(timesteps), chunks, -1)

    img = [table(f"transformer_blocks.{i}.norm1.linear", 6) for i in doubles]
    txt = [table(f"transformer_blocks.{i}.norm1_context.linear", 6) for i in doubles]
    single = [table(f"single_transformer_blocks.{i}.norm.linear", 3) for i in singles]
    out = table("norm_out.linear", 2)
    tables = mx.stack(img, axis=2), mx.stack(txt, axis=2), mx.stack(single, axis=2), out  # [P, S, layers, chunks, D]
    steps = [
        [Modulation(*(table[p, s] for table in tables)) for s in range(len(timesteps))] for p in range(len(pooled))
    ]
    mx.eval(steps)
    return steps


def _conditioning(
    config: FluxConfig, fill: Fill, timesteps: Sequence[float], guidance: float, pooled: Sequence[mx.array]
) -> mx.array:
    """The vector that all adaLN linears read: time + guidance + pooled text, [P * S, D] in float32."""
    empty = FluxModulators(config).time_text_embed
    embedders = {name: fill(module, f"time_text_embed.{name}") for name, module in empty.items()}
    time = embedders["timestep_embedder"](sinusoids(timesteps))  # [S, D]
    if "guidance_embedder" in embedders:
        time = time + embedders["guidance_embedder"](sinusoids([guidance * 1000.0]))
    text = embedders["text_embedder"](mx.concatenate([row.astype(mx.float32) for row in pooled]))  # [P, D]
    vec: mx.array = text[:, None] + time[None]
    mx.eval(vec)
    return vec.reshape(-1, vec.shape[-1])
