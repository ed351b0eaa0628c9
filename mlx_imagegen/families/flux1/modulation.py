"""FLUX.1's adaLN linears, tabulated for a whole schedule before the loop.

In: a component's weights, the schedule's timesteps, guidance and pooled prompts. Out: one `Modulation` a prompt and
step. 27% of the transformer passes through memory in pieces of at most 113 MB (bf16), several at a time, instead of
lying in it for the whole loop. They depend on the prompt, and so are read again for a new one: for several prompts of a
request at once, and not at all where there is room to keep them.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.embed import FREQUENCIES, EmbeddingMLP, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table, with_ones
from ...loading.component import Component
from ...loading.single_layers import KeptLayers, reading_ahead
from ...loading.weights import Weights
from ...precision import compute_dtype
from .config import FluxConfig
from .prompts import FluxBranch
from .transformer import Modulation

# What the tables of prompts that come later may take: 4 prompts of 28 steps, 30 of 4.
TABLES_BYTES = 256 * 2**20
# Paths of the adaLN linears.
IMG, TXT = "transformer_blocks.{}.norm1.linear", "transformer_blocks.{}.norm1_context.linear"
SCALES = 1, 4  # of a block's vectors: before attention, before the feed-forward
SINGLE, OUT = "single_transformer_blocks.{}.norm.linear", "norm_out.linear"


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
        if config.has_head:
            self.norm_out = {"linear": Linear(dims, 2 * dims)}


class PromptTables:
    """The modulation of every prompt that a request needs, for the schedule that was asked for last."""

    def __init__(self, config: FluxConfig, weights: Weights):
        self.layers = KeptLayers(weights)
        self.expected: Sequence[FluxBranch] = ()  # of the request that lasts, in order
        self.dtype = compute_dtype()  # the tables'
        self._config = config
        self._weights = weights
        self._schedule: tuple[object, ...] = ()
        self._tables: WeakKeyDictionary[FluxBranch, Sequence[Modulation]] = WeakKeyDictionary()
        self._source = ""

    @property
    def weight_bytes(self) -> int:
        """What the weights take where they are kept; those of a file in float32 stay so."""
        wide = any(part.dtype in ("F32", "F64") for part in self._weights.slices.values())
        modulators = Component(self._weights, lambda: FluxModulators(self._config), mx.float32)
        return modulators.held_bytes(4 if wide else 2)

    def forget(self) -> None:
        """The weights have become others."""
        self.layers.forget()
        self._tables.clear()

    def tables(
        self, branches: Sequence[FluxBranch], timesteps: Sequence[float], guidance: float
    ) -> tuple[list[Sequence[Modulation]], str]:
        """One for each branch, and where they came from."""
        schedule = (tuple(timesteps), guidance)
        if schedule != self._schedule or not all(branch in self._tables for branch in branches):
            together = self._with_next(branches, len(timesteps))
            self._tables.clear()  # before others are made
            pooled = [branch.pooled for branch in together]
            made = tabulate(self._config, self.layers.fill, timesteps, guidance, pooled, self.dtype)
            self._tables.update(zip(together, made, strict=True))
            self._schedule = schedule
            self._source = f"for {len(together)} prompt{'s' * (len(together) > 1)} at once, " + (
                "from weights that are kept" if self.layers.keep else "from weights that are read for it"
            )
        return [self._tables[branch] for branch in branches], self._source

    def _with_next(self, branches: Sequence[FluxBranch], steps: int) -> list[FluxBranch]:
        """These, and of those that are expected as many as there is room for."""
        places = [self.expected.index(branch) for branch in branches if branch in self.expected]
        later = [branch for branch in self.expected[max(places, default=0) :] if branch not in branches]
        count = TABLES_BYTES // (_table_size(self._config) * steps * self.dtype.size)
        return [*branches, *later[: max(0, count - len(branches))]]


def tabulate(
    config: FluxConfig,
    fill: Fill,
    timesteps: Sequence[float],
    guidance: float,
    pooled: Sequence[mx.array],
    dtype: mx.Dtype,
) -> list[list[Modulation]]:
    """S timesteps (0..1000), pooled P x [1, D] -> P lists of S modulations, in `dtype`, evaluated."""
    vec = silu(_conditioning(config, fill, timesteps, guidance, pooled))  # [P, S, D]
    chunks = _chunks(config)
    linears = ((Linear(config.inner_dim, count * config.inner_dim), path) for path, count in chunks.items())
    tables = {}
    with reading_ahead(fill, linears) as ahead:
        for path, count in chunks.items():
            tables[path] = adaln_table(ahead, path, vec, count, dtype)  # [P, S, count, D]

    def stacked(pattern: str, count: int) -> mx.array:
        found = [tables[pattern.format(index)] for index in range(count)]
        return mx.stack(found, axis=2) if found else none  # [P, S, layers, chunks, D]

    doubles, singles = config.num_layers, config.num_single_layers
    none = mx.zeros((len(pooled), len(timesteps), 0), dtype)
    img, txt, single = stacked(IMG, doubles), stacked(TXT, doubles), stacked(SINGLE, singles)
    out = with_ones(tables[OUT], 0) if OUT in tables else none
    parts = with_ones(img, *SCALES), with_ones(txt, *SCALES), with_ones(single, SCALES[0]) if singles else none, out
    steps = [[Modulation(*(part[p, s] for part in parts)) for s in range(len(timesteps))] for p in range(len(pooled))]
    mx.eval(steps)
    return steps


def _chunks(config: FluxConfig) -> dict[str, int]:
    """The adaLN linears' paths, and how many vectors each gives."""
    doubles = [path.format(index) for index in range(config.num_layers) for path in (IMG, TXT)]
    singles = [SINGLE.format(index) for index in range(config.num_single_layers)]
    return dict.fromkeys(doubles, 6) | dict.fromkeys(singles, 3) | ({OUT: 2} if config.has_head else {})


def _table_size(config: FluxConfig) -> int:
    """Numbers a prompt and step."""
    return sum(_chunks(config).values()) * config.inner_dim


def _conditioning(
    config: FluxConfig, fill: Fill, timesteps: Sequence[float], guidance: float, pooled: Sequence[mx.array]
) -> mx.array:
    """The vector that all adaLN linears read: time + guidance + pooled text, [P, S, D] in float32."""
    empty = FluxModulators(config).time_text_embed
    embedders = {name: fill(module, f"time_text_embed.{name}") for name, module in empty.items()}
    time = embedders["timestep_embedder"](sinusoids(timesteps))  # [S, D]
    if "guidance_embedder" in embedders:
        time = time + embedders["guidance_embedder"](sinusoids([guidance * 1000.0]))
    text = mx.concatenate([embedders["text_embedder"](row.astype(mx.float32)) for row in pooled])  # [P, D]
    vec: mx.array = text[:, None] + time[None]
    mx.eval(vec)
    return vec
