"""Qwen-Image-2.1's velocity for one picture.

In: what `QwenImage21.denoiser` computed for each branch. Out: dx/dsigma at each step.
Must not know: prompts, schedules, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.attention import KeyValues
from ...layers.rope import Rope
from ...loading.component import Component
from ...precision import compute_dtype
from ..base import Denoiser
from .transformer import Modulation


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    rope: Rope  # of the picture's tokens
    prefix: tuple[KeyValues, ...]  # of text and references, one a block


class QwenImage21Denoiser(Denoiser[Condition]):
    def __init__(
        self,
        transformer: Component,
        conditions: Sequence[Condition],
        cfg: float,
        modulation: Sequence[Modulation],
        tables_source: str,
    ):
        """`modulation`: one a step."""
        super().__init__(conditions, cfg, tables_source)
        self._transformer = transformer
        self._modulation = modulation

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        x = x.astype(compute_dtype())
        velocity: mx.array = self._transformer.load()(
            x, branch.rope, branch.prefix, self._modulation[index], self.after_first_block(index, branch)
        )
        return velocity
