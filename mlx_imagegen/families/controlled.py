"""Denoisers next to which control networks run.

In: the networks, ready for the prompt, and the pictures that they look at. Out: before each step, what its blocks add.
Must not know: any family's layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import mlx.core as mx

from ..precision import compute_dtype
from .base import Branch, Denoiser
from .controls import Controls, EncodedControl, Residuals_co


@dataclass(eq=False)
class ControlledDenoiser(Denoiser[Branch], Generic[Branch, Residuals_co]):
    """Control networks read the prompt alone; what they make of it counts for the unwanted branches too."""

    controls: Controls[Residuals_co]
    residuals: list[Residuals_co] = field(default_factory=list, init=False)  # of the step that runs

    def start_picture(self, condition: Any = None, controls: Sequence[EncodedControl] = ()) -> None:
        self.controls.start(controls)

    def velocity(self, x: mx.array, index: int) -> mx.array:
        self.residuals = self.controls.residuals(x.astype(compute_dtype()), index)
        velocity = super().velocity(x, index)
        self.residuals = []
        return velocity
