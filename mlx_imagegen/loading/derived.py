"""Tensors made of stored ones while they are read: runs of rows, other orders of rows and axes, several in one.

Must not know: names, layouts, files of indexes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..errors import CheckpointError
from ..escaping import shown
from ..layers.linear import Packing
from ..packing.affine import unpack_rows
from .tensor import REMEDY, Tensor


@dataclass(frozen=True)
class RowsTensor(Tensor):
    """A run of another tensor's rows, the second half of them first where `swap_halves` says so."""

    source: Tensor
    row: int
    swap_halves: bool

    @classmethod
    def of(cls, name: str, source: Tensor, row: int, rows: int | None, swap_halves: bool = False) -> Self:
        """`rows`: None for a tensor as it is, which may have no axis."""
        height = source.shape[0] if source.shape else 1
        count = height if rows is None else rows
        start, nbytes = (source.nbytes * part // max(1, height) for part in (row, count))
        shape, numbers = (axes if rows is None else (rows, *axes[1:]) for axes in (source.shape, source.full_shape))
        return cls(
            source.path, name, source.dtype, shape, source.start + start, nbytes, source, row, swap_halves,
            numbers_shape=numbers, format=source.format, unpacked=source.unpacked, packing=source.packing,
        )  # fmt: skip

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        if not self.shape:
            return self.source.bytes()
        stop = self.shape[0] if rows is None else row + rows
        runs = unswapped_runs(row, stop, self.shape[0]) if self.swap_halves else [(row, stop - row)]
        parts = [self.source.bytes(self.row + first, count) for first, count in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def unswapped_runs(start: int, stop: int, height: int) -> list[tuple[int, int]]:
    """Rows [start, stop) of a tensor whose halves have changed places, as runs of the source's: (first, how many)."""
    half = height // 2
    parts = ((start, min(stop, half), half), (max(start, half), stop, -half))
    return [(low + shift, high - low) for low, high, shift in parts if low < high]


@dataclass(frozen=True)
class InterleavedTensor(Tensor):
    """Rows of heads in which those of two halves alternate, as llama.cpp turns them, one half after the other."""

    source: Tensor
    head: int

    @classmethod
    def of(cls, source: Tensor, head: int) -> Self:
        if source.shape[0] % head or head % 2:
            raise ValueError(f"{source.shape[0]} rows in heads of {head}")
        return cls(
            source.path, source.name, source.dtype, source.shape, source.start, source.nbytes, source, head,
            numbers_shape=source.full_shape, format=source.format, unpacked=source.unpacked, packing=source.packing,
        )  # fmt: skip

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        stop = self.shape[0] if rows is None else row + rows
        first = row // self.head * self.head
        last = -(-stop // self.head) * self.head
        stored = self.source.bytes(first, last - first)
        heads = stored.reshape(-1, self.head // 2, 2, *stored.shape[1:])  # [heads, pairs, halves, …]
        return heads.swapaxes(1, 2).reshape(stored.shape)[row - first : stop - first]


@dataclass(frozen=True)
class ChannelsLastTensor(Tensor):
    """A convolution's weight as MLX keeps it, [out, …, in], in torch's order of axes."""

    source: Tensor

    @classmethod
    def of(cls, source: Tensor) -> Tensor:
        if len(source.shape) < 4:
            return source
        shape = (source.shape[0], source.shape[-1], *source.shape[1:-1])
        return cls(source.path, source.name, source.dtype, shape, source.start, source.nbytes, source)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(self.source.bytes(row, rows), -1, 1))


@dataclass(frozen=True)
class NumbersTensor(Tensor):
    """A weight in MLX's packing as float32, for modules that take no codes."""

    parts: Mapping[str, Tensor]  # weight, scales and biases
    bits: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str, bits: int, group_size: int) -> Self:
        module = name.removesuffix("weight")
        parts = {part: tensors[module + part] for part in ("weight", "scales", "biases")}
        codes, columns = parts["weight"], parts["scales"].shape[1] * group_size
        shape = (codes.shape[0], columns)
        return cls(codes.path, name, "F32", shape, codes.start, codes.nbytes, parts, bits, unpacked=True)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        codes, scales, biases = self.parts.values()
        packed = {
            "weight": codes.bytes(row, rows),
            "scales": scales.floats(row, rows),
            "biases": biases.floats(row, rows),
        }
        return unpack_rows(packed, Packing(self.bits, self.shape[1] // scales.shape[1]))


@dataclass(frozen=True)
class JoinedTensor(Tensor):
    """Several tensors as one: rows that follow each other, or a new axis."""

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
        nbytes, unpacked = sum(each.nbytes for each in pieces), any(each.unpacked for each in pieces)
        return cls(
            first.path, name, dtype, shape, first.start, nbytes, tuple(pieces), axis,
            format=first.stored_as, unpacked=unpacked,
        )  # fmt: skip

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
