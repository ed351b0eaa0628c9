"""Shares out layers: every rank holds a part of each block's weights, and all draw the same picture in lockstep.

In: an open pipeline and the group. Out: the pipeline, whose components now load only this rank's part and whose
products are summed over the ranks; how much was summed. Must not know: families' tables, requests.
"""

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..families.base import Family
from ..layers.sharing import AllSum, Sharing
from ..pipeline import Pipeline
from ..request.job import Job
from .group import Group

TIMED_STEP = 1  # the second: the first one reads weights and chooses kernels


class Sums:
    """Sums over the ranks, counted as they are asked for, and made in that order on every rank.

    MLX's ring adds what comes next, whatever it is. Ranks may differ in when they evaluate, for one may unpack a weight
    by strips where another one's kernel is faster: so each sum waits for the one before it.
    What a rank waits for the others is seen only where a sum is evaluated by itself, which would hold up the rest if it
    were done for all: it is done in one step of each picture.
    """

    def __init__(self, all_sum: AllSum):
        self._all_sum = all_sum
        self._last: mx.array | None = None
        self._count = self._bytes = 0
        self._steps = 0  # of this picture, that have ended
        self._waited_seconds = 0.0

    def __call__(self, x: mx.array) -> mx.array:
        self._count += 1
        self._bytes += x.nbytes  # of this rank
        if self._last is not None:
            (x,) = mx.depends([x], [self._last])
        self._last = self._timed(x) if self._steps == TIMED_STEP else self._all_sum(x)
        return self._last

    def _timed(self, x: mx.array) -> mx.array:
        mx.eval(x)
        started = time.perf_counter()
        total = self._all_sum(x)
        mx.eval(total)
        self._waited_seconds += time.perf_counter() - started
        return total

    def end_step(self) -> None:
        """Makes those that nothing has asked for, which another rank may have made."""
        mx.eval(self._last)
        self._last = None
        self._steps += 1

    def take_statistics(self) -> dict[str, Any]:
        """Since the last call: the sums that this rank took part in, how large its own arrays were, and how long those
        of the timed step took from when it had its own part. A picture that is the first of its prompt has the text
        encoder's sums too."""
        waited = {"waited_seconds": self._waited_seconds, "waited_steps": int(self._steps > TIMED_STEP)}
        taken = {"sums": self._count, "summed_bytes": self._bytes, **waited}
        self._count = self._bytes = self._steps = 0
        self._waited_seconds = 0.0
        return taken


def why_not_layers(family: Family[Any], jobs: Sequence[Job], size: int) -> str | None:
    """The reason why the layers cannot be shared out over this many ranks for these pictures; None if they can."""
    if any(job.settings.cache is not None for job in jobs):
        return "ranks could differ in which steps --cache predicts; leave --cache out"
    refused = family.sharing_refusal(Sharing(0, (1,) * size))
    return refused and f"{family.spec.title} over {size} ranks: {refused}; launch fewer, or share out pictures"


def share_layers(pipeline: Pipeline, group: Group, parts: Sequence[int]) -> Sums:
    """On every rank, before any weight is read and after `start_collectives`. `parts`: each rank's share."""
    sums = Sums(group.all_sum)
    pipeline.family.share_layers(Sharing(group.rank, tuple(parts), sums))
    return sums
