"""FLUX.2's velocity for one picture.

In: what `Flux2.denoiser` computed for each branch, and the reference pictures' tokens or their keys and values. Out:
dx/dsigma at each step. Must not know: prompts, schedules, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.attention import KeyValues
from ...layers.rope import Rope
from ...loading.component import Component
from ...precision import compute_dtype
from ..base import Denoiser, with_references
from .transformer import Modulation


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    txt: mx.array  # [1, T, F]
    rope: Rope
    modulation: Sequence[Modulation]  # one a step


class Flux2Denoiser(Denoiser[Condition]):
    def __init__(
        self,
        transformer: Component,
        conditions: Sequence[Condition],
        cfg: float,
        references: mx.array | None,
        kept: Sequence[KeyValues],
        tables_source: str,
    ):
        """`references`: tokens [1, R, C] that go through every step. `kept`: keys and values of those that do not."""
        super().__init__(conditions, cfg, tables_source)
        self._transformer = transformer
        self._references = references
        self._kept = kept

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        x, count = with_references(x.astype(compute_dtype()), self._references)
        transformer, modulation = self._transformer.load(), branch.modulation[index]
        after_first = self.after_first_block(index, branch)
        velocity: mx.array = transformer(x, branch.txt, branch.rope, modulation, count, self._kept, after_first)
        return velocity
