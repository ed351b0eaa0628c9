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
    def __init__(
        self,
        transformer: Component,
        conditions: Sequence[Condition],
        cfg: float,
        modulation: str,
        references: mx.array | None = None,
    ):
        """`modulation`: where it came from. `references`: packed latents, [1, R, C]."""
        super().__init__(conditions, cfg)
        self._transformer = transformer
        self._modulation = modulation
        self._references = references
        self._channels: mx.array | None = None

    def start_picture(self, condition: mx.array | None = None) -> None:
        """`condition`: the further channels of every token, [1, L, C]."""
        self._channels = condition

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer, x, references = self._transformer.load(), x.astype(compute_dtype()), 0
        if self._channels is not None:
            x = mx.concatenate([x, self._channels.astype(x.dtype)], axis=-1)
        if self._references is not None:
            references = self._references.shape[1]
            x = mx.concatenate([x, self._references.astype(x.dtype)], axis=1)
        between = self.after_first_block(index, branch)
        velocity: mx.array = transformer(x, branch.txt, branch.rope, branch.modulation[index], references, between)
        return velocity

    def choices(self) -> dict[str, str]:
        return {"modulation": self._modulation}
