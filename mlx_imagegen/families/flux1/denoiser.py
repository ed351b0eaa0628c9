"""FLUX.1's velocity for one picture.

In: what `Flux1.denoiser` computed for each branch. Out: dx/dsigma at each step. Must not know: prompts, schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from ..base import Condition, with_references
from ..controlled import ControlledDenoiser
from ..controls import EncodedControl
from .prompts import AttendedPicture
from .transformer import Modulation, Residuals


@dataclass(frozen=True)
class FluxCondition(Condition):
    modulation: Sequence[Modulation]  # one a step
    pictures: Sequence[AttendedPicture]


@dataclass(eq=False)
class Flux1Denoiser(ControlledDenoiser[FluxCondition, Residuals]):
    references: mx.array | None  # packed latents, [1, R, C]
    channels: mx.array | None = field(default=None, init=False)  # further ones of every token, [1, L, C]

    def start_picture(self, condition: mx.array | None = None, controls: Sequence[EncodedControl] = ()) -> None:
        self.channels = condition
        super().start_picture(condition, controls)

    def branch_velocity(self, x: mx.array, index: int, branch: FluxCondition) -> mx.array:
        transformer, x = self.transformer.load(), x.astype(self.transformer.dtype)
        if self.channels is not None:
            x = mx.concatenate([x, self.channels.astype(x.dtype)], axis=-1)
        x, references = with_references(x, self.references)
        velocity: mx.array = transformer(
            x, branch.txt, branch.rope, branch.modulation[index], references, self.residuals,
            self.after_first_block(index, branch), branch.pictures,
        )  # fmt: skip
        return velocity
