"""FLUX.2's velocity for one picture.

In: what `Flux2.denoiser` computed for each branch, and the reference pictures' tokens or their keys and values. Out:
dx/dsigma at each step. Must not know: prompts, schedules, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.attention import KeyValues
from ...precision import compute_dtype
from ..base import Condition, Denoiser, with_references
from .transformer import Modulation


@dataclass(eq=False)
class Flux2Denoiser(Denoiser[Condition]):
    modulation: Sequence[Modulation]  # one a step
    references: mx.array | None  # tokens [1, R, C] that go through every step
    kept: Sequence[KeyValues]  # of those that do not

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        x, count = with_references(x.astype(compute_dtype()), self.references)
        transformer, modulation = self.transformer.load(), self.modulation[index]
        after_first = self.after_first_block(index, branch)
        velocity: mx.array = transformer(x, branch.txt, branch.rope, modulation, count, self.kept, after_first)
        return velocity
