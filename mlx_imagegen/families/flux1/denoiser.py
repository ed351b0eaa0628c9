"""FLUX.1's velocity for one picture.

In: what `Flux1.denoiser` computed for each branch. Out: dx/dsigma at each step. Must not know: prompts, schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.rope import Rope
from ...loading.component import Component
from ...precision import compute_dtype
from ..base import Denoiser
from .transformer import Modulation


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    txt: mx.array  # [1, T, D]
    rope: Rope
    modulation: Sequence[Modulation]  # one a step


class Flux1Denoiser(Denoiser[Condition]):
    def __init__(self, transformer: Component, conditions: Sequence[Condition], cfg: float, modulation: str):
        """`modulation`: where it came from."""
        super().__init__(conditions, cfg)
        self._transformer = transformer
        self._modulation = modulation

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer = self._transformer.load()
        x = x.astype(compute_dtype())
        velocity: mx.array = transformer(x, branch.txt, branch.rope, branch.modulation[index])
        return velocity

    def choices(self) -> dict[str, str]:
        return {"modulation": self._modulation}
