"""FLUX.1's velocity for one picture.

In: what `Flux1.denoiser` computed for each branch. Out: dx/dsigma at each step. Must not know: prompts, schedules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import mlx.core as mx

from ...layers.rope import Rope
from ...loading.component import Component
from ..base import with_references
from ..controlled import ControlledDenoiser
from ..controls import EncodedControl
from .control import ControlPass
from .prompts import AttendedPicture
from .transformer import Modulation, Residuals


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    txt: mx.array  # [1, T, D]
    rope: Rope
    modulation: Sequence[Modulation]  # one a step
    pictures: Sequence[AttendedPicture] = ()


class Flux1Denoiser(ControlledDenoiser[Condition, Residuals]):
    def __init__(
        self,
        transformer: Component,
        conditions: Sequence[Condition],
        cfg: float,
        tables_source: str,
        references: mx.array | None = None,
        passes: Mapping[str, ControlPass] = MappingProxyType({}),
    ):
        """`references`: packed latents, [1, R, C]. `passes`: control networks."""
        super().__init__(conditions, cfg, tables_source, passes, len(conditions[0].modulation))
        self._transformer = transformer
        self._references = references
        self._channels: mx.array | None = None

    def start_picture(self, condition: mx.array | None = None, controls: Sequence[EncodedControl] = ()) -> None:
        """`condition`: the further channels of every token, [1, L, C]."""
        self._channels = condition
        super().start_picture(condition, controls)

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer, x = self._transformer.load(), x.astype(self._transformer.dtype)
        if self._channels is not None:
            x = mx.concatenate([x, self._channels.astype(x.dtype)], axis=-1)
        x, references = with_references(x, self._references)
        velocity: mx.array = transformer(
            x, branch.txt, branch.rope, branch.modulation[index], references, self._residuals,
            self.after_first_block(index, branch), branch.pictures,
        )  # fmt: skip
        return velocity
