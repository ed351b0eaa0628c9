"""Looks into a picture's loop from a test."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_imagegen.families.base import Denoiser, Family

Velocity = Callable[[mx.array, int], mx.array]


def around_velocity(family: Family[Any], wrap: Callable[[Velocity], Velocity]) -> None:
    """Every denoiser that the family makes from now on has its velocity wrapped."""
    make = family.denoiser

    def denoiser(*given: Any) -> Denoiser[Any]:
        made = make(*given)
        made.velocity = wrap(made.velocity)  # type: ignore[method-assign]
        return made

    family.denoiser = denoiser  # type: ignore[method-assign]
