"""FLUX.1's velocity for one picture.

In: what `Flux1.denoiser` computed for each branch. Out: dx/dsigma at each step. Must not know: prompts, schedules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import mlx.core as mx

from ...layers.rope import Rope
from ...loading.component import Component
from ...precision import compute_dtype
from ..base import Denoiser
from ..controls import Controls, EncodedControl
from .control import ControlPass
from .transformer import Modulation, Residuals


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
        passes: Mapping[str, ControlPass] = MappingProxyType({}),
    ):
        """`modulation`: where it came from. `references`: packed latents, [1, R, C]. `passes`: control networks."""
        super().__init__(conditions, cfg)
        self._transformer = transformer
        self._modulation = modulation
        self._references = references
        self._channels: mx.array | None = None
        self._controls = Controls(passes, len(conditions[0].modulation))
        self._residuals: list[Residuals] = []

    def start_picture(self, condition: mx.array | None = None, controls: Sequence[EncodedControl] = ()) -> None:
        """`condition`: the further channels of every token, [1, L, C]."""
        self._channels = condition
        self._controls.start(controls)

    def velocity(self, x: mx.array, index: int) -> mx.array:
        """Control networks read the prompt alone; what they make of it counts for the unwanted branches too."""
        self._residuals = self._controls.residuals(x.astype(compute_dtype()), index)
        velocity = super().velocity(x, index)
        self._residuals = []
        return velocity

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer, x, references = self._transformer.load(), x.astype(compute_dtype()), 0
        if self._channels is not None:
            x = mx.concatenate([x, self._channels.astype(x.dtype)], axis=-1)
        if self._references is not None:
            references = self._references.shape[1]
            x = mx.concatenate([x, self._references.astype(x.dtype)], axis=1)
        velocity: mx.array = transformer(
            x, branch.txt, branch.rope, branch.modulation[index], references, self._residuals,
            self.after_first_block(index, branch),
        )  # fmt: skip
        return velocity

    def choices(self) -> dict[str, str]:
        return {"modulation": self._modulation}
