"""Z-Image's velocity for one picture.

In: what `ZImage.denoiser` computed for each branch. Out: dx/dsigma at each step. Guidance is the scale between two
branches; the length of what comes out may be bounded by the prompt's own.
Must not know: prompts, schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.rope import Rope
from ...loading.component import Component
from ...precision import compute_dtype
from ..base import Denoiser
from .transformer import Clean, Modulation


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    txt: mx.array  # [1, T, D]
    rope: Rope
    clean: Clean | None = None


class ZImageDenoiser(Denoiser[Condition]):
    def __init__(
        self,
        transformer: Component,
        conditions: Sequence[Condition],
        cfg: float,
        modulation: Sequence[Modulation],
        normalization: bool,
    ):
        """`modulation`: one a step. `normalization`: whether guidance keeps the prompt's velocity from growing."""
        super().__init__(conditions, cfg)
        self._transformer = transformer
        self._modulation = modulation
        self._normalization = normalization

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer = self._transformer.load()
        x = x.astype(compute_dtype())
        modulation, after_first = self._modulation[index], self.after_first_block(index, branch)
        out: mx.array = transformer(x, branch.txt, branch.rope, modulation, after_first, branch.clean)
        return -out

    def combine(self, velocities: Sequence[mx.array]) -> mx.array:
        v = super().combine(velocities)
        if not self._normalization:
            return v
        return v * mx.minimum(mx.linalg.norm(velocities[0]) / mx.linalg.norm(v), 1.0)
