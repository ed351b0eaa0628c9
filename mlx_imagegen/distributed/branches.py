"""Shares out branches: each rank runs one branch of guidance, and after each step all ranks have every velocity.

In: a function that computes one branch's velocity. Out: all velocities, in float32, as if one rank had run them; how
long the rank waited, and what it sent. Must not know: models, schedules.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..request.job import Job
from .group import Group


def why_not_branches(jobs: Sequence[Job], size: int) -> str | None:
    """The reason why not every rank would have one branch of each picture to run; None if it would."""
    for job in jobs:
        count = 1 if job.negative is None else 2
        if count == 1:
            return "without guidance between two branches there is one alone; set it above 1, or share out pictures"
        if count != size:
            return f"there are {count} branches and {size} ranks; launch {count}, or share out pictures"
        if job.settings.cache is not None:
            return "the first branch decides for all which steps --cache predicts; leave --cache out"
    return None


class BranchExchange:
    """As `Denoiser.run_branches`."""

    def __init__(self, group: Group):
        self._group = group
        self._waited_seconds = 0.0
        self._exchanged_bytes = self._steps = 0

    def __call__(self, velocity: Callable[[int], mx.array]) -> list[mx.array]:
        """`velocity`: of the branch with this number."""
        own = velocity(self._group.rank)
        mx.eval(own)
        started = time.perf_counter()
        all_of_them = self._group.all_gather(own[None])
        mx.eval(all_of_them)
        self._waited_seconds += time.perf_counter() - started
        self._exchanged_bytes += own.nbytes
        return [all_of_them[branch] for branch in range(self._group.size)]

    def end_step(self) -> None:
        """All are evaluated."""
        self._steps += 1

    def take_statistics(self) -> dict[str, Any]:
        """Since the last call: how long this rank waited, in how many steps, and how much it sent to each other."""
        waited = {"waited_seconds": self._waited_seconds, "waited_steps": self._steps}
        taken = {"sent_bytes": self._exchanged_bytes, **waited}
        self._waited_seconds, self._exchanged_bytes, self._steps = 0.0, 0, 0
        return taken
