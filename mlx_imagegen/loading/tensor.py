"""A stored tensor: its dtype, its shape and its place in a file, read when asked for, whole or by rows.

MLX's own loaders read a whole tensor to give one row, and follow a file that is overwritten under them.
Must not know: file formats, names' meanings.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import IO

import mlx.core as mx
import numpy as np

from ..bfloat import to_float32
from ..documents import Stamp, open_file, stamp_of
from ..errors import CheckpointError
from ..escaping import shown
from ..layers.linear import Packing

# safetensors' dtype -> (the numpy type that carries its bytes, the MLX type those bytes are viewed as)
DTYPES: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "F64": (np.float64, mx.float32),  # a LoRA's alpha may be one; MLX narrows it
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "F8_E4M3": (np.uint8, mx.uint8),  # decoded by read(), as the next one; MLX has no such array types
    "F8_E5M2": (np.uint8, mx.uint8),
    "F8_E8M0": (np.uint8, mx.uint8),  # a power of two: only scales are stored so
    "U8": (np.uint8, mx.uint8),
    "I8": (np.int8, mx.int8),
    "I16": (np.int16, mx.int16),
    "U16": (np.uint16, mx.uint16),
    "I32": (np.int32, mx.int32),
    "U32": (np.uint32, mx.uint32),
    "I64": (np.int64, mx.int64),
    "U64": (np.uint64, mx.uint64),
    "BOOL": (np.bool_, mx.bool_),
}
TENSORS_LIMIT, AXES_LIMIT, AXIS_LIMIT = 200_000, 8, 2**31 - 1  # of a file; MLX counts an axis in 32 bits
AGAIN = "delete it and download it again"
REMEDY = "The file is damaged or its download did not finish: delete it and download it again."


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `nbytes` from `start`. Subclasses compute what they give from what is there."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    _: KW_ONLY
    file_stamp: Stamp | None = None  # the file's, when its header was read; None: it is not checked again
    format: str | None = None  # the file's, where `dtype` is what is made of it
    unpacked: bool = False  # whether the numbers are computed from codes and scales in the file
    packing: Packing | None = None  # of a weight's codes, where the file's format is one that MLX multiplies by
    numbers_shape: tuple[int, ...] | None = None  # of the weight's numbers, where `shape` is that of packed codes

    @property
    def stored_as(self) -> str:
        return self.format or self.dtype

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.numbers_shape or self.shape

    @property
    def floating(self) -> bool:
        return self.dtype.startswith("F8_") or mx.issubdtype(DTYPES[self.dtype][1], mx.floating)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        """Rows [row, row + rows) of the first axis as a numpy array of the carrying type (bf16 as uint16)."""
        carrier, shape = np.dtype(DTYPES[self.dtype][0]), self.shape
        if shape:
            shape = (shape[0] - row if rows is None else rows, *shape[1:])
        out = np.empty(shape, carrier)
        start = self.start + row * carrier.itemsize * math.prod(shape[1:])
        read_exactly(self, start, out.reshape(-1).data.cast("B"))
        return out

    def read(self, row: int = 0, rows: int | None = None) -> mx.array:
        """The same rows as an MLX array in the stored dtype (fp8 is decoded to bfloat16)."""
        return as_mlx(self.bytes(row, rows), self.dtype)

    def floats(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        """The same rows in float32."""
        return to_float32(self.bytes(row, rows), self.dtype)

    def gather(self, indices: Sequence[int]) -> mx.array:
        """Single rows, in the order of `indices`: for embedding tables, which are never loaded in full."""
        outside = [index for index in indices if not 0 <= index < self.shape[0]]
        if outside:
            raise CheckpointError(
                f"{self.path}: '{shown(self.name)}' has {self.shape[0]} rows, row {outside[0]} was asked for."
            )
        rows = {index: self.bytes(index, 1) for index in sorted(set(indices))}
        return as_mlx(np.concatenate([rows[index] for index in indices]), self.dtype)


def as_mlx(array: np.ndarray, dtype: str) -> mx.array:
    kind = DTYPES[dtype][1]
    if dtype == "F8_E4M3":
        return mx.from_fp8(mx.array(array), mx.bfloat16)
    if dtype in ("F8_E5M2", "F8_E8M0"):
        return mx.array(to_float32(array, dtype)).astype(mx.bfloat16)  # which holds every one of their numbers
    out = mx.array(array)
    return out if out.dtype == kind else out.view(kind)


def read_exactly(tensor: Tensor, offset: int, target: memoryview) -> None:
    """Fills `target`; loops because one read call gives at most 2 GiB on Linux and macOS."""
    done, name = 0, f"'{shown(tensor.name)}'"
    with open_file(tensor.path, CheckpointError, f"it went away before {name} was read: put it back") as file:
        file.seek(offset)
        while done < len(target):
            count = file.readinto(target[done : done + 2**30])
            if not count:
                raise CheckpointError(
                    f"{tensor.path} ended while {name} was read: it changed while it was read. {REMEDY}"
                )
            done += count
        check_unchanged(tensor, file)


def check_unchanged(tensor: Tensor, file: IO[bytes]) -> None:
    """Raises for another file than the one whose header was read: at the same offsets it has other numbers."""
    if tensor.file_stamp and stamp_of(file) != tensor.file_stamp:
        raise CheckpointError(
            f"{tensor.path} changed while it was read, or was replaced after it was opened, so '{shown(tensor.name)}' "
            "is no longer where it was; open the model again."
        )
