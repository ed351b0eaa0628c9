"""Layers shared out over several machines: which rows or columns of each weight one of them holds.

Attention's heads and a feed-forward's channels are shared out. The layers that give them are cut by rows, so that a
machine computes its own heads and channels alone; the layer that reads them is cut by columns, and what it gives on
each machine is summed over all of them.
In: what a family says of its layers (`Cuts`), and which of the machines this one is. Out: a `Share` on each layer of an
empty module tree; loading reads no more than that, and the layer sums its product where it has to.
Must not know: families, files, how machines are connected.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import mlx.core as mx
import mlx.nn as nn

ROWS, COLUMNS = 0, 1
LEAST_GROUP = 32  # columns that share a scale in the finest affine packing: channels are cut between such groups

AllSum = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Span:
    """A run of a weight's rows or columns, of equal units between which it may be cut: heads, or groups of channels."""

    length: int
    units: int


@dataclass(frozen=True)
class Cut:
    """How a weight is cut: along which axis, and in which spans that axis consists of, each of which is cut."""

    axis: int
    spans: tuple[Span, ...]
    together: int = 1  # the products of so many layers are added before they are summed, by whoever adds them


# Globs over layers' paths -> how their weights are cut. Other layers are complete on every machine.
Cuts = Mapping[str, Cut]


@dataclass(frozen=True)
class Share:
    """What one machine holds of a layer's weight."""

    cut: Cut
    runs: tuple[tuple[int, int], ...]  # first and one after the last, of each span, in the complete weight
    all_sum: AllSum | None = None

    @property
    def lengths(self) -> list[int]:
        """How much of each span is here."""
        return [stop - start for start, stop in self.runs]

    @property
    def sums_itself(self) -> bool:
        """Whether the layer's product is summed over the machines before anything is added to it."""
        return self.cut.axis == COLUMNS and self.cut.together == 1

    def sum(self, x: mx.array) -> mx.array:
        """Over the machines."""
        return x if self.all_sum is None else self.all_sum(x)

    def scaled(self, length: int) -> list[tuple[int, int]] | None:
        """The runs in a stored tensor whose axis has another length, as codes and scales have; None where they do not
        fall between its numbers."""
        complete = sum(span.length for span in self.cut.spans)
        if any(place * length % complete for run in self.runs for place in run):
            return None
        return [(start * length // complete, stop * length // complete) for start, stop in self.runs]

    def shape(self, complete: Sequence[int]) -> tuple[int, ...]:
        """Of what is here of a weight with this shape."""
        out = list(complete)
        out[self.cut.axis] = sum(self.lengths)
        return tuple(out)


@dataclass(frozen=True)
class Sharing:
    """Which part of the layers is this machine's."""

    rank: int
    parts: tuple[int, ...]  # how large each machine's part is, in relation to the others'
    all_sum: AllSum | None = None  # over the machines; None for plans

    def share_of(self, cut: Cut) -> Share:
        return Share(cut, tuple(self._runs(cut)), self.all_sum)

    def lacks_units(self, cut: Cut) -> bool:
        """Whether the weight has too few units for every machine to get some of each span."""
        shares = (replace(self, rank=rank).share_of(cut) for rank in range(len(self.parts)))
        return any(not length for share in shares for length in share.lengths)

    def _runs(self, cut: Cut) -> Iterator[tuple[int, int]]:
        before, total = sum(self.parts[: self.rank]), sum(self.parts)
        start = 0
        for span in cut.spans:
            unit = span.length // span.units
            first, stop = (span.units * part // total for part in (before, before + self.parts[self.rank]))
            yield start + first * unit, start + stop * unit
            start += span.length

    def mark(self, layers: Iterable[tuple[str, nn.Module]], cuts: Cuts) -> None:
        """Notes on each layer, by path, which part of it is this machine's."""
        for path, layer in layers:
            cut = cut_of(path, cuts)
            if cut is not None:
                layer.share = self.share_of(cut)


def rows(*spans: Span) -> Cut:
    """Of a layer that gives heads or channels."""
    return Cut(ROWS, spans)


def columns(*spans: Span, together: int = 1) -> Cut:
    """Of a layer that reads them."""
    return Cut(COLUMNS, spans, together)


def heads(length: int, count: int) -> Span:
    """`count`: those of keys and values, where they are fewer: theirs and all that read them stay together."""
    return Span(length, count)


def channels(length: int) -> Span:
    return Span(length, length // math.gcd(length, LEAST_GROUP))


def cut_of(path: str, cuts: Cuts) -> Cut | None:
    return next((cut for glob, cut in cuts.items() if _matches(path, glob)), None)


@functools.cache
def _matches(path: str, glob: str) -> bool:
    return fnmatchcase(path, glob)


def share_of(layer: nn.Module) -> Share | None:
    """None where the layer is complete on this machine."""
    share: Share | None = getattr(layer, "share", None)
    return share


def lengths_of(layer: nn.Module, complete: Sequence[int]) -> Sequence[int]:
    """How long the parts of a layer's output are that `complete` gives for the complete layer."""
    share = share_of(layer)
    return complete if share is None else share.lengths


def summed(x: mx.array, layer: nn.Module) -> mx.array:
    """The sum over the machines of what `layer` and others were added up to."""
    share = share_of(layer)
    return x if share is None else share.sum(x)
