"""Z-Image's velocity for one picture.

In: what `ZImage.denoiser` computed for each branch. Out: dx/dsigma at each step. Guidance is the scale between two
branches; the length of what comes out may be bounded by the prompt's own.
Must not know: prompts, schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...precision import compute_dtype
from ..base import Condition, Denoiser
from .transformer import Clean, Modulation


@dataclass(frozen=True)
class ZImageCondition(Condition):
    clean: Clean | None = None


@dataclass(eq=False)
class ZImageDenoiser(Denoiser[ZImageCondition]):
    modulation: Sequence[Modulation]  # one a step
    normalization: bool  # whether guidance keeps the prompt's velocity from growing

    def branch_velocity(self, x: mx.array, index: int, branch: ZImageCondition) -> mx.array:
        transformer, x = self.transformer.load(), x.astype(compute_dtype())
        modulation, after_first = self.modulation[index], self.after_first_block(index, branch)
        out: mx.array = transformer(x, branch.txt, branch.rope, modulation, after_first, branch.clean)
        return -out

    def combine(self, velocities: Sequence[mx.array]) -> mx.array:
        v = super().combine(velocities)
        if not self.normalization:
            return v
        return v * mx.minimum(mx.linalg.norm(velocities[0]) / mx.linalg.norm(v), 1.0)
