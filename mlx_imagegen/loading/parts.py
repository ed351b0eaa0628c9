"""A component put together from rows of tensors in other files: the index that says which, written and read.

In: names, each with a stored tensor and a run of its rows. Out: `index`, JSON for a folder; `open_parts`, the tensors
by those names. So a file of another layout, of which a component is a part, is opened as a component's folder is.
Must not know: families, layouts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import CheckpointError
from ..escaping import shown
from ..layers.linear import Packing
from ..packing.affine import unpack_rows
from .joined import Join, JoinedTensor
from .tensor import REMEDY, Tensor

INDEX = "parts.safetensors.index.json"  # a folder's index, of another kind than that over shards
PARTS, FILES, UNPACKED, JOINED = "parts", "files", "unpacked", "joined"
PACKED_PARTS = (".scales", ".biases")  # of a weight; an unpacked one has none


@dataclass(frozen=True)
class RowsTensor(Tensor):
    """A run of another tensor's rows, the second half of them first where `swap_halves` says so."""

    source: Tensor
    row: int
    swap_halves: bool = False

    @classmethod
    def of(cls, name: str, source: Tensor, row: int, rows: int | None, swap_halves: bool) -> Self:
        """`rows`: None for a tensor as it is, which may have no axis."""
        shape = source.shape if rows is None else (rows, *source.shape[1:])
        start = source.start + (source.stop - source.start) * row // max(1, source.shape[0]) if rows else source.start
        return cls(source.path, name, source.dtype, shape, start, source.stop, source, row, swap_halves)

    @property
    def unpacked(self) -> bool:
        return self.source.unpacked

    @property
    def stored_as(self) -> str:
        return self.source.stored_as

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (*self.shape[:1], *self.source.full_shape[1:])

    @property
    def packing(self) -> Packing | None:
        return self.source.packing

    @property
    def nbytes(self) -> int:
        return self.source.nbytes * self.shape[0] // max(1, self.source.shape[0]) if self.shape else self.source.nbytes

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        return self._joined(self.source.bytes, row, rows)

    def floats(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        return self._joined(self.source.floats, row, rows)

    def _joined(self, read: Callable[[int, int | None], np.ndarray], row: int, rows: int | None) -> np.ndarray:
        if not self.shape:
            return read(0, None)
        rows = self.shape[0] - row if rows is None else rows
        if not self.swap_halves:
            return read(self.row + row, rows)
        half, stop = self.shape[0] // 2, row + rows
        runs = ((row, min(stop, half), half), (max(row, half), stop, -half))
        return np.concatenate([read(self.row + low + shift, high - low) for low, high, shift in runs if low < high])


@dataclass(frozen=True)
class InterleavedTensor(RowsTensor):
    """Rows of heads in which those of two halves alternate, as llama.cpp turns them, one half after the other."""

    head: int = 2

    @classmethod
    def over(cls, source: Tensor, head: int) -> Self:
        if source.shape[0] % head or head % 2:
            raise ValueError(f"{source.shape[0]} rows in heads of {head}")
        return cls(
            source.path, source.name, source.dtype, source.shape, source.start, source.stop, source, 0, head=head
        )

    def _joined(self, read: Callable[[int, int | None], np.ndarray], row: int, rows: int | None) -> np.ndarray:
        stop = self.shape[0] if rows is None else row + rows
        first = row // self.head * self.head
        last = -(-stop // self.head) * self.head
        stored = read(first, last - first)
        heads = stored.reshape(-1, self.head // 2, 2, *stored.shape[1:])  # [heads, pairs, halves, …]
        return heads.swapaxes(1, 2).reshape(stored.shape)[row - first : stop - first]


@dataclass(frozen=True)
class ChannelsLastTensor(Tensor):
    """A convolution's weight as MLX keeps it, [out, …, in], in torch's order of axes."""

    source: Tensor

    @classmethod
    def of(cls, source: Tensor) -> "Tensor":
        if len(source.shape) < 4:
            return source
        shape = (source.shape[0], source.shape[-1], *source.shape[1:-1])
        return cls(source.path, source.name, source.dtype, shape, source.start, source.stop, source)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(self.source.bytes(row, rows), -1, 1))


@dataclass(frozen=True)
class NumbersTensor(Tensor):
    """A weight in MLX's packing as float32, for modules that take no codes."""

    codes: Tensor
    scales: Tensor
    biases: Tensor
    bits: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str, bits: int, group_size: int) -> Self:
        module = name.removesuffix("weight")
        codes, scales, biases = (tensors[module + part] for part in ("weight", "scales", "biases"))
        shape = (codes.shape[0], scales.shape[1] * group_size)
        return cls(codes.path, name, "F32", shape, codes.start, codes.stop, codes, scales, biases, bits)

    @property
    def unpacked(self) -> bool:
        return True

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        grids = {"scales": self.scales.floats(row, rows), "biases": self.biases.floats(row, rows)}
        packing = Packing(self.bits, self.shape[1] // self.scales.shape[1])
        return unpack_rows({"weight": self.codes.bytes(row, rows), **grids}, packing)


@dataclass(frozen=True)
class Part:
    """One tensor of the component, and where its rows are."""

    name: str
    file: Path
    tensor: str  # in the file
    row: int = 0
    rows: int | None = None  # all, where there is none
    swap_halves: bool = False
    channels_last: bool = False  # of a convolution
    numbers_of: tuple[int, int] | None = None  # bits and group size of codes that are read as numbers
    interleaved: int = 0  # how many rows a head has, in which those of two halves alternate
    join: Join | None = None

    @property
    def key(self) -> str:
        """In the index."""
        return self.name if self.join is None else f"{self.name}/{self.join.piece}"


def index(parts: Iterable[Part]) -> dict[str, Any]:
    """As JSON."""
    parts = list(parts)
    files = sorted({str(part.file.absolute()) for part in parts})
    numbers = {file: number for number, file in enumerate(files)}
    rows = {
        part.key: [
            numbers[str(part.file.absolute())],
            part.tensor,
            part.row,
            part.rows,
            part.swap_halves,
            part.channels_last,
            part.numbers_of,
            part.interleaved,
        ]
        for part in parts
    }
    joined = {part.name: part.join[1:] for part in parts if part.join}
    return {FILES: files, PARTS: rows, **({JOINED: joined} if joined else {})}


def unpacked_index(data: Mapping[str, Any], packed: Collection[str]) -> dict[str, Any]:
    """An index of the same parts with the numbers of these modules' weights in the place of their codes."""
    gone = {module + part for module in packed for part in PACKED_PARTS}
    parts = {
        name: [*place, None, head] for name, (*place, _, head) in data[PARTS].items() if name not in gone
    }  # whose weights are numbers already
    return {**data, PARTS: parts, UNPACKED: True}


def open_parts(
    data: Mapping[str, Any], where: Path, open_file: Callable[[Path, bool], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of an index, and the files that they are in. `open_file`: a file's tensors by name, its weights
    packed or not."""
    try:
        paths = [Path(file) for file in data[FILES]]
        opened = [open_file(path, not data.get(UNPACKED)) for path in paths]
        tensors: dict[str, Tensor] = {}
        for name, (number, stored, *run, swap_halves, channels_last, numbers_of, head) in data[PARTS].items():
            if stored not in opened[number]:
                raise CheckpointError(f"{paths[number]} has no tensor '{shown(stored)}' any more; open it again.")
            source = opened[number][stored]
            source = NumbersTensor.of(opened[number], stored, *numbers_of) if numbers_of else source
            source = ChannelsLastTensor.of(source) if channels_last else source
            source = InterleavedTensor.over(source, head) if head else source
            tensors[name] = RowsTensor.of(name, source, *_run(source, *run), swap_halves is True)
        for name, (count, axis) in data.get(JOINED, {}).items():
            pieces = [tensors.pop(key) for piece in range(count) if (key := f"{name}/{piece}") in tensors]
            if len(pieces) < count:
                raise CheckpointError(
                    f"{pieces[0].path} has {len(pieces)} of the {count} tensors for '{shown(name)}'. {REMEDY}"
                )
            tensors[name] = JoinedTensor.of(name, pieces, axis)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} is not an index of parts ({shown(repr(error))}); remove its folder.") from error
    return tensors, paths


def _run(source: Tensor, row: object, rows: object) -> tuple[int, int | None]:
    """A run of the tensor's rows, which it has."""
    if rows is None and row == 0 and type(row) is int:
        return row, None
    if (
        type(row) is not int
        or type(rows) is not int
        or not source.shape
        or not 0 <= row <= row + rows <= source.shape[0]
    ):
        raise ValueError(f"rows {row} and {rows} more")
    return row, rows
