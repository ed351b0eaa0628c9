"""Qwen-Image's adaLN linears, tabulated for a whole schedule before the loop and never resident.

In: a component's weights and the schedule's timesteps. Out: a `Modulation` a step, the same for every prompt.
The linears are read one at a time, used on all steps at once and dropped: 33% of the transformer passes through memory
in pieces of at most 113 MB (bf16) instead of lying in it for the whole loop. A folded checkpoint holds their outputs
for one schedule instead of them: `unfold` reads those.
"""

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...folding import Read
from ...layers.activation import silu
from ...layers.embed import FREQUENCIES, EmbeddingMLP, sinusoids
from ...layers.linear import Linear
from ...layers.modulation import Fill, FoldedLinear, adaln_table, folded_adaln_table, with_ones
from ...loading.weights import layers
from .config import QwenImageConfig
from .transformer import Modulation

EMBEDDER = "time_text_embed.timestep_embedder"
ADDED = "time_text_embed.addition_t_embedding"  # Qwen-Image-Layered's, of which pictures with alpha take the first row
# (an adaLN linear's path, its chunks) -> its outputs, [rows, chunks, D]
Outputs = Callable[[str, int], mx.array]
Tables = dict[str, mx.array]
SCALES = 1, 4  # of a block's vectors: before attention, before the MLP


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
            self.time_text_embed: dict[str, nn.Module] = {"timestep_embedder": EmbeddingMLP(FREQUENCIES, dims)}
            if config.use_additional_t_cond:
                self.time_text_embed["addition_t_embedding"] = AddedEmbedding(dims)
        # The checkpoint calls the linears img_mod.1 and txt_mod.1; 0 is the SiLU before them.
        self.transformer_blocks = [
            {"img_mod": {"1": adaln(6)}, "txt_mod": {"1": adaln(6)}} for _ in range(config.num_layers)
        ]
        if config.has_head:
            self.norm_out = {"linear": adaln(2)}


class AddedEmbedding(nn.Module):
    """What is added to the timestep's vector: a row for pictures with alpha, and one for those without."""

    def __init__(self, dims: int):
        super().__init__()
        self.weight = mx.zeros((2, dims))


def steps(tables: Mapping[str, mx.array]) -> tuple[Modulation, ...]:
    """The tables' rows, evaluated."""
    img, txt = (with_ones(tables[name], *SCALES) for name in ("img", "txt"))
    out = with_ones(tables["out"], 0) if tables["out"].ndim == 3 else tables["out"]  # a control network has none
    clean = with_ones(tables["clean"], *SCALES) if "clean" in tables else None
    made = tuple(Modulation(*step, clean) for step in zip(img, txt, out, strict=True))
    mx.eval(made)
    return made


def modulators(config: QwenImageConfig) -> tuple[frozenset[str], frozenset[str]]:
    """The paths of the adaLN linears, and of the layers before them that they share."""
    paths = {path for path, _ in layers(QwenImageModulators(config))}
    shared = frozenset(path for path in paths if path.startswith((EMBEDDER, ADDED)))
    return frozenset(paths) - shared, shared


def tabulate(config: QwenImageConfig, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> Tables:
    """S timesteps (0..1000) -> img and txt [S, layers, 6, D], out [S, 2, D], and with zero_cond_t img's at t = 0 as
    "clean", [layers, 6, D], in `dtype`."""
    vec = fill(EmbeddingMLP(FREQUENCIES, config.inner_dim), EMBEDDER)(embedded(config, timesteps))  # [S (+ 1), D]
    if config.use_additional_t_cond:
        vec = vec + fill(AddedEmbedding(config.inner_dim), ADDED).weight[0]
    vec = silu(vec)
    mx.eval(vec)
    return _gathered(config, lambda path, chunks: adaln_table(fill, path, vec, chunks, dtype))


def unfold(config: QwenImageConfig, fill: Fill, columns: Sequence[int], count: int, dtype: mx.Dtype) -> Tables:
    """The same from a folded checkpoint's tables, which have `count` columns; of those, the steps' own."""
    chosen, dims = [*columns, count - 1] if config.zero_cond_t else columns, config.inner_dim
    return _gathered(config, lambda path, chunks: folded_adaln_table(fill, path, dims, chunks, chosen, count, dtype))


def fold_inputs(config: QwenImageConfig, timesteps: Sequence[float], read: Read) -> np.ndarray:
    """What the adaLN linears are given, [S (+ 1), D], in float64: for tables that are the same on every machine."""
    x = np.array(embedded(config, timesteps)).astype(np.float64)
    for name in ("linear_1", "linear_2"):
        x = x @ read(f"{EMBEDDER}.{name}", "weight").T + read(f"{EMBEDDER}.{name}", "bias")
        if name == "linear_2" and config.use_additional_t_cond:
            x = x + read(ADDED, "weight")[0]
        x = x / (1 + np.exp(-x))
    return x


def embedded(config: QwenImageConfig, timesteps: Sequence[float]) -> mx.array:
    """Sinusoids of the timesteps; with zero_cond_t a row for t = 0, shared by all steps, comes last."""
    times = np.array([*timesteps, 0.0] if config.zero_cond_t else timesteps, np.float32) / np.float32(1000)
    return sinusoids(times.tolist(), scale=1000.0)


def _gathered(config: QwenImageConfig, outputs: Outputs) -> Tables:
    img: list[mx.array] = []
    txt: list[mx.array] = []
    for i in range(config.num_layers):
        img.append(outputs(f"transformer_blocks.{i}.img_mod.1", 6))
        txt.append(outputs(f"transformer_blocks.{i}.txt_mod.1", 6))
    imgs, txts = mx.stack(img, axis=1), mx.stack(txt, axis=1)  # [S (+ 1), layers, 6, D]
    out = outputs("norm_out.linear", 2) if config.has_head else mx.zeros((len(imgs), 0))
    mx.eval(imgs, txts)
    if not config.zero_cond_t:
        return {"img": imgs, "txt": txts, "out": out}
    return {"img": imgs[:-1], "txt": txts[:-1], "out": out[:-1], "clean": imgs[-1]}
