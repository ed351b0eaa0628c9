"""Layers shared out: every rank holds a part of each block's weights, and draws the same picture in lockstep.

In: an open pipeline and the group. Out: the pipeline, whose components load this rank's part from now on and whose
products are summed over the ranks; how much was summed. Must not know: families' tables, requests.
"""

from dataclasses import dataclass

import mlx.core as mx

from ..layers.sharing import AllSum, Sharing
from ..pipeline import Pipeline
from .group import Group


@dataclass
class Sums:
    """Sums over the ranks, counted as they are asked for."""

    all_sum: AllSum
    count: int = 0
    bytes: int = 0  # of one rank's arrays

    def __call__(self, x: mx.array) -> mx.array:
        self.count += 1
        self.bytes += x.nbytes
        return self.all_sum(x)


def check_layers(pipeline: Pipeline, size: int) -> None:
    """Raises where the model's layers cannot be shared out over so many ranks."""
    pipeline.family.check_sharing(Sharing(0, (1,) * size))


def share_layers(pipeline: Pipeline, group: Group) -> Sums:
    """On every rank, before any weight is read and after `group.start_collectives`."""
    sums = Sums(group.all_sum)
    sharing = Sharing(group.rank, (1,) * group.size, sums)
    pipeline.family.check_sharing(sharing)
    pipeline.family.share_layers(sharing)
    return sums
