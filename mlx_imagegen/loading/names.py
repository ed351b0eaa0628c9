"""The rename engine: what a checkpoint calls its tensors -> what our modules call them.

A family gives a `Rename`: for a source tensor's name, the tensors it supplies, each a run of its rows. The engine turns
it round, so that loading can ask for one of our tensors and read just those rows.
Must not know: which layouts exist (families' keys.py).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .derived import RowsTensor, unswapped_runs
from .tensor import Tensor


class Join(NamedTuple):
    """Which piece of one of our tensors a source tensor is."""

    piece: int
    pieces: int
    axis: int = 0  # 0: rows follow rows; others: a new axis


@dataclass(frozen=True)
class RowRange:
    """One of our tensors as a part of a source tensor: `share` of the rows from `start`, both in units of `of`-ths."""

    name: str
    start: int = 0
    share: int = 1
    of: int = 1
    swap_halves: bool = False
    interleaved: int = 0  # over so many rows, a head's, our first half's alternate with our second's
    join: Join | None = None  # where ours has several source tensors


Rename = Callable[[str], Iterable[RowRange]]


def same_names(name: str) -> Iterable[RowRange]:
    """The layout our modules are named after."""
    return (RowRange(name),)


def source_rows(tensor: Tensor, target: RowRange) -> tuple[int, int | None]:
    """Which rows of a stored tensor `target` takes, from the first of so many; None: all."""
    if target.of == 1:
        return 0, None
    unit = tensor.shape[0] // target.of
    return target.start * unit, target.share * unit


def cut(tensor: Tensor, target: RowRange) -> Tensor:
    """Those rows, by the name of the stored tensor."""
    row, rows = source_rows(tensor, target)
    whole = rows is None and not target.swap_halves
    return tensor if whole else RowsTensor.of(tensor.name, tensor, row, rows, target.swap_halves)


def runs(target: RowRange, first: int, count: int, height: int) -> list[RowRange]:
    """Rows [first, first + count) of our tensor, `height` rows high, as runs of the source's single rows."""
    start, of = target.start * height // target.share, target.of * height // target.share
    stored = unswapped_runs(first, first + count, height) if target.swap_halves else [(first, count)]
    return [RowRange(target.name, start + row, rows, of) for row, rows in stored]


def slices(tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """Our names -> where their rows lie. A name that `rename` gives no target for is dropped on purpose."""
    return {target.name: cut(tensor, target) for name, tensor in tensors.items() for target in rename(name)}
