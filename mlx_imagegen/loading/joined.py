"""One tensor out of several, which a checkpoint of another layout has in its place.

In: the pieces. Out: a `Tensor`. Must not know: names, layouts, files of indexes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from ..errors import CheckpointError
from ..escaping import shown
from .tensor import REMEDY, Tensor


class Join(NamedTuple):
    """Which piece of one of our tensors a source tensor is."""

    piece: int
    pieces: int
    axis: int = 0  # 0: rows follow rows; others: a new axis


@dataclass(frozen=True)
class JoinedTensor(Tensor):
    pieces: tuple[Tensor, ...]
    axis: int

    @classmethod
    def of(cls, name: str, pieces: Sequence[Tensor], axis: int) -> Self:
        """In float32 where the pieces' dtypes differ."""
        first, rest = pieces[0], 0 if axis else 1  # what may differ between pieces
        if any(each.shape[rest:] != first.shape[rest:] for each in pieces):
            shapes = ", ".join(str(list(each.shape)) for each in pieces)
            raise CheckpointError(
                f"{first.path}: the tensors for '{shown(name)}' have shapes {shapes}, which make none. {REMEDY}"
            )
        rows = (sum(each.shape[0] for each in pieces), *first.shape[1:])
        shape = (*first.shape[:axis], len(pieces), *first.shape[axis:]) if axis else rows
        dtype = first.dtype if all(each.dtype == first.dtype for each in pieces) else "F32"
        return cls(first.path, name, dtype, shape, first.start, first.stop, tuple(pieces), axis)

    @property
    def unpacked(self) -> bool:
        return any(each.unpacked for each in self.pieces)

    @property
    def stored_as(self) -> str:
        return self.pieces[0].stored_as

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.pieces)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        stop = self.shape[0] if rows is None else row + rows
        if self.axis:
            return np.stack([self._read(each, row, stop) for each in self.pieces], self.axis)
        parts, begin = [], 0
        for each in self.pieces:
            first, last = (min(max(place - begin, 0), each.shape[0]) for place in (row, stop))
            parts.append(self._read(each, first, last))
            begin += each.shape[0]
        return np.concatenate(parts)

    def _read(self, piece: Tensor, row: int, stop: int) -> np.ndarray:
        read = piece.bytes if piece.dtype == self.dtype else piece.floats
        return read(row, stop - row)
