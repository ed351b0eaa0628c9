"""Z-Image's adaLN linears, tabulated for a whole schedule before the loop and never resident.

In: a component's weights and the schedule's timesteps. Out: a `Modulation` a step, the same for every prompt. All
linears read one vector of the timestep, the last one after a SiLU; they are read one at a time and dropped.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...layers.activation import silu
from ...layers.embed import TimestepEmbedder
from ...layers.linear import Linear
from ...layers.modulation import Fill, adaln_table
from ...layers.norm import RMSNorm
from .config import ZImageConfig
from .transformer import NORMS, Modulation

TIME_HIDDEN = 1024  # diffusers fixes it in code


class ZImageModulators(nn.Module):
    """The tree of everything that feeds adaLN, by diffusers' names: shapes, to be filled layer by layer."""

    def __init__(self, config: ZImageConfig):
        super().__init__()
        width, dims = config.adaln_dim, config.dim

        def adaln() -> dict[str, list[Linear]]:
            return {"adaLN_modulation": [Linear(width, 4 * dims)]}

        self.t_embedder = TimestepEmbedder(width, hidden=TIME_HIDDEN)
        self.noise_refiner = [adaln() for _ in range(config.n_refiner_layers)]
        self.layers = [adaln() for _ in range(config.n_layers)]
        # The checkpoint calls the last one adaLN_modulation.1; 0 is the SiLU before it.
        self.all_final_layer = {config.patch_key: {"adaLN_modulation": {"1": Linear(width, dims)}}}


def tabulate(config: ZImageConfig, fill: Fill, timesteps: Sequence[float], dtype: mx.Dtype) -> dict[str, mx.array]:
    """S timesteps (0..1000, of the noise) -> the fields of `Modulation`, [S, …] each, in `dtype`."""
    empty = ZImageModulators(config)
    vec = fill(empty.t_embedder, "t_embedder")(clean_times(timesteps, config.t_scale))  # [S, adaln_dim]
    mx.eval(vec)

    def table(path: str) -> mx.array:
        out = adaln_table(fill, f"{path}.adaLN_modulation.0", vec, 4, mx.float32, config.dim)
        scale, gate, ffn_scale, ffn_gate = out.swapaxes(0, 1)
        factors = 1 + scale, mx.tanh(gate), 1 + ffn_scale, mx.tanh(ffn_gate)
        norms = (fill(RMSNorm(config.dim, config.norm_eps), f"{path}.{name}").weight for name in NORMS)
        rows = mx.stack([factor * norm for factor, norm in zip(factors, norms, strict=True)], axis=1).astype(dtype)
        mx.eval(rows)
        return rows

    refiner = mx.stack([table(f"noise_refiner.{i}") for i in range(config.n_refiner_layers)], axis=1)
    layers = mx.stack([table(f"layers.{i}") for i in range(config.n_layers)], axis=1)  # [S, layers, 4, D]
    path = f"all_final_layer.{config.patch_key}.adaLN_modulation.1"
    out = 1 + adaln_table(fill, path, silu(vec), 1, dtype, config.dim)[:, 0]
    return {"refiner": refiner, "layers": layers, "out": out}


def steps(tables: Mapping[str, mx.array]) -> tuple[Modulation, ...]:
    """The tables' rows, evaluated."""
    made = tuple(map(Modulation, tables["refiner"], tables["layers"], tables["out"]))
    mx.eval(made)
    return made


def clean_times(timesteps: Sequence[float], scale: float) -> list[float]:
    """The model counts from noise (0) to picture (`scale`), and diffusers does so in float32."""
    clean = (np.float32(1000) - np.asarray(timesteps, np.float32)) / np.float32(1000)
    return [float(time) for time in clean * np.float32(scale)]
