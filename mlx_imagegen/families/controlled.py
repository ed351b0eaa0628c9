"""Denoisers next to which control networks run.

In: the networks, ready for the prompt, and the pictures that they look at. Out: before each step, what its blocks add.
Must not know: any family's layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic

import mlx.core as mx

from ..precision import compute_dtype
from .base import Branch, Denoiser
from .controls import ControlPass, Controls, EncodedControl, Residuals_co


class ControlledDenoiser(Denoiser[Branch], Generic[Branch, Residuals_co]):
    """Control networks read the prompt alone; what they make of it counts for the unwanted branches too."""

    def __init__(
        self,
        branches: Sequence[Branch],
        cfg: float,
        tables_source: str,
        passes: Mapping[str, ControlPass[Residuals_co]],
        steps: int,
    ):
        super().__init__(branches, cfg, tables_source)
        self._controls = Controls(passes, steps)
        self._residuals: list[Residuals_co] = []  # of the step that runs

    def start_picture(self, condition: Any = None, controls: Sequence[EncodedControl] = ()) -> None:
        self._controls.start(controls)

    def velocity(self, x: mx.array, index: int) -> mx.array:
        self._residuals = self._controls.residuals(x.astype(compute_dtype()), index)
        velocity = super().velocity(x, index)
        self._residuals = []
        return velocity
