"""The rename engine: what a checkpoint calls its tensors -> what our modules call them.

A family gives a `Rename`: for a source tensor's name, the tensors it supplies, each a run of its rows. The engine turns
it round, so that loading can ask for one of our tensors and read just those rows.
Must not know: which layouts exist (families' keys.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .checkpoint import Tensor
from .joined import Join


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


@dataclass(frozen=True)
class Slice:
    """Rows of a stored tensor that make one of ours."""

    tensor: Tensor
    row: int = 0
    rows: int | None = None
    swap_halves: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.rows if self.rows is not None else (self.tensor.shape[0] if self.tensor.shape else None)
        return self.tensor.shape if rows is None else (rows, *self.tensor.shape[1:])

    def read(self) -> mx.array:
        value = self.tensor.read(self.row, self.rows)
        return mx.concatenate(list(mx.split(value, 2))[::-1]) if self.swap_halves else value

    def read_rows(self, row: int, rows: int) -> mx.array:
        """A run of rows of ours; it must not cross the middle of swapped halves."""
        return self.tensor.read(self.row + self._unswapped(row), rows)

    def gather(self, rows: Sequence[int]) -> mx.array:
        """Single rows of a table."""
        return self.tensor.gather(rows)

    def bytes(self, row: int, rows: int) -> np.ndarray:
        """Rows of ours as they are stored; they must not cross the middle of swapped halves."""
        return self.tensor.bytes(self.row + self._unswapped(row), rows)

    def floats(self, row: int, rows: int) -> np.ndarray:
        """The same rows in float32: the numbers that `read` gives."""
        return self.tensor.floats(self.row + self._unswapped(row), rows)

    def _unswapped(self, row: int) -> int:
        return (row + self.shape[0] // 2) % self.shape[0] if self.swap_halves else row


Rename = Callable[[str], Iterable[RowRange]]


def same_names(name: str) -> Iterable[RowRange]:
    """The layout our modules are named after."""
    return (RowRange(name),)


def cut(tensor: Tensor, target: RowRange) -> Slice:
    """The rows of a stored tensor that `target` takes."""
    if target.of == 1:
        return Slice(tensor, swap_halves=target.swap_halves)
    unit = tensor.shape[0] // target.of
    return Slice(tensor, target.start * unit, target.share * unit, target.swap_halves)


def runs(target: RowRange, first: int, count: int, height: int) -> list[RowRange]:
    """Rows [first, first + count) of our tensor, `height` rows high, as runs of the source's single rows."""
    start, of = target.start * height // target.share, target.of * height // target.share
    if not target.swap_halves:
        return [RowRange(target.name, start + first, count, of)]
    half, stop = height // 2, first + count
    parts = ((first, min(stop, half), half), (max(first, half), stop, -half))  # our first half is the source's second
    return [RowRange(target.name, start + low + shift, high - low, of) for low, high, shift in parts if low < high]


def slices(tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Slice]:
    """Our names -> where their rows lie. A name that `rename` gives no target for is dropped on purpose."""
    return {target.name: cut(tensor, target) for name, tensor in tensors.items() for target in rename(name)}
