"""Qwen-Image's adaLN linears, tabulated for a whole schedule before the loop and never resident.

In: a component's weights and the schedule's timesteps. Out: `Tables`, a `Modulation` a step, the same for every prompt.
The linears are read one at a time, used on all steps at once and dropped: 33% of the transformer passes through memory
in pieces of at most 113 MB (bf16) instead of lying in it for the whole loop. A folded checkpoint holds their outputs
for one schedule instead of them: `unfold` reads those.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...folding import Read
from ...layers.activation import silu
from ...layers.embed import FREQUENCIES, EmbeddingMLP, sinusoids
from ...layers.linear import Linear
from ...loading.weights import layers
from .config import QwenImageConfig
from .transformer import Modulation

EMBEDDER = "time_text_embed.timestep_embedder"
# Fills an empty layer from the checkpoint, by the layer's path.
Fill = Callable[[nn.Module, str], nn.Module]
# (an adaLN linear's path, its rows) -> its outputs, a row a timestep
Outputs = Callable[[str, int], mx.array]


class FoldedLinear(nn.Module):
    """A linear's outputs in its place, a column a timestep."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.table = mx.zeros((rows, columns))


class QwenImageModulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer.

    `columns`: as a folded checkpoint has it, with tables for that many timesteps.
    """

    def __init__(self, config: QwenImageConfig, columns: int = 0):
        super().__init__()
        dims = config.inner_dim

        def adaln(chunks: int) -> nn.Module:
            return FoldedLinear(chunks * dims, columns) if columns else Linear(dims, chunks * dims)

        if not columns:
            self.time_text_embed = {"timestep_embedder": EmbeddingMLP(FREQUENCIES, dims)}
        # The checkpoint calls the linears img_mod.1 and txt_mod.1; 0 is the SiLU before them.
        self.transformer_blocks = [
            {"img_mod": {"1": adaln(6)}, "txt_mod": {"1": adaln(6)}} for _ in range(config.num_layers)
        ]
        self.norm_out = {"linear": adaln(2)}


class Tables(NamedTuple):
    """A whole schedule's adaLN vectors: img and txt [S, layers, 6, D], out [S, 2, D], and with zero_cond_t img's at
    t = 0, [layers, 6, D]."""

    img: mx.array
    txt: mx.array
    out: mx.array
    clean: mx.array | None = None

    def steps(self) -> tuple[Modulation, ...]:
        rows = zip(self.img, self.txt, self.out, strict=True)
        return tuple(Modulation(*step, self.clean) for step in rows)

    def arrays(self) -> dict[str, mx.array]:
        return {name: array for name, array in self._asdict().items() if array is not None}


def modulators(config: QwenImageConfig) -> tuple[frozenset[str], frozenset[str]]:
    """The paths of the adaLN linears, and of the layers before them that they share."""
    paths = {path for path, _ in layers(QwenImageModulators(config))}
    shared = frozenset(path for path in paths if path.startswith(EMBEDDER))
    return frozenset(paths) - shared, shared


def tabulate(config: QwenImageConfig, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> Tables:
    """S timesteps (0..1000) -> S modulations, in `dtype`."""
    dims = config.inner_dim
    vec = silu(fill(EmbeddingMLP(FREQUENCIES, dims), EMBEDDER)(embedded(config, timesteps)))  # [S (+ 1), D]
    mx.eval(vec)
    return _gathered(config, lambda path, rows: fill(Linear(dims, rows), path)(vec), dtype)


def unfold(config: QwenImageConfig, fill: Fill, columns: Sequence[int], count: int, dtype: mx.Dtype) -> Tables:
    """The same from a folded checkpoint's tables, which have `count` columns; of those, the steps' own."""
    chosen = mx.array([*columns, count - 1] if config.zero_cond_t else list(columns))
    return _gathered(config, lambda path, rows: fill(FoldedLinear(rows, count), path).table[:, chosen].T, dtype)


def fold_inputs(config: QwenImageConfig, timesteps: Sequence[float], read: Read) -> np.ndarray:
    """What the adaLN linears are given, [S (+ 1), D], in float64: for tables that are the same on every machine."""
    x = np.array(embedded(config, timesteps)).astype(np.float64)
    for name in ("linear_1", "linear_2"):
        x = x @ read(f"{EMBEDDER}.{name}", "weight").T + read(f"{EMBEDDER}.{name}", "bias")
        x = x / (1 + np.exp(-x))
    return x


def embedded(config: QwenImageConfig, timesteps: Sequence[float]) -> mx.array:
    """Sinusoids of the timesteps; with zero_cond_t a row for t = 0, shared by all steps, comes last."""
    times = np.array([*timesteps, 0.0] if config.zero_cond_t else timesteps, np.float32) / np.float32(1000)
    return sinusoids(times.tolist(), scale=1000.0)


def _gathered(config: QwenImageConfig, outputs: Outputs, dtype: mx.Dtype) -> Tables:
    dims = config.inner_dim

    def table(path: str, chunks: int) -> mx.array:
        out = outputs(path, chunks * dims)
        out = out.reshape(out.shape[0], chunks, dims).astype(dtype)
        mx.eval(out)  # now, so that this layer's weight can go before the next is read
        return out

    img: list[mx.array] = []
    txt: list[mx.array] = []
    for i in range(config.num_layers):
        img.append(table(f"transformer_blocks.{i}.img_mod.1", 6))
        txt.append(table(f"transformer_blocks.{i}.txt_mod.1", 6))
    out = table("norm_out.linear", 2)
    imgs, txts = mx.stack(img, axis=1), mx.stack(txt, axis=1)  # [S (+ 1), layers, 6, D]
    mx.eval(imgs, txts)
    if not config.zero_cond_t:
        return Tables(imgs, txts, out)
    return Tables(imgs[:-1], txts[:-1], out[:-1], imgs[-1])
