"""The header of a safetensors file, checked against the file's size before a byte of data is read.

In: a file. Out: its tensors by name, and its metadata. MLX's own loader cannot say what is wrong with a damaged one.
Must not know: names' meanings, quantization.
"""

import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..documents import Stamp, open_file, parse_json, stamp_of
from ..errors import CheckpointError
from ..escaping import shown
from .tensor import AGAIN, AXES_LIMIT, AXIS_LIMIT, DTYPES, REMEDY, TENSORS_LIMIT, Tensor

HEADER_LIMIT_BYTES = 100 * 2**20  # the format's own limit; real headers with a thumbnail in them reach about 100 kB

LFS_POINTER = b"version "  # how git leaves a large file that was not fetched


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one file and its `__metadata__`; every offset is checked, so that reading can trust them."""
    with open_file(path, CheckpointError, AGAIN) as file:
        stamp = stamp_of(file)
        text = _header_text(file, path, size := os.fstat(file.fileno()).st_size)
    entries, metadata = _parsed(path, text)
    origin = 8 + len(text)
    tensors = {name: _tensor(path, name, entry, origin, stamp) for name, entry in entries.items()}
    _check_extents(path, tensors, origin, size)
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` alone; what the header says of tensors is not checked."""
    with open_file(path, CheckpointError, AGAIN) as file:
        text = _header_text(file, path, os.fstat(file.fileno()).st_size)
    return _parsed(path, text)[1]


def _parsed(path: Path, text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """A header's entries by tensor, and its metadata."""
    header = parse_json(text, f"{path}: the header", CheckpointError, AGAIN)
    if not isinstance(header, dict) or len(header) > TENSORS_LIMIT:
        raise CheckpointError(f"{path}: the header is not a JSON object of up to {TENSORS_LIMIT} tensors. {REMEDY}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's '__metadata__' is not a JSON object of texts. {REMEDY}")
    return header, metadata


def _header_text(file: IO[bytes], path: Path, size: int) -> bytes:
    if size < 8:
        raise CheckpointError(f"{path} is not a complete safetensors file: it is only {size} bytes long. {REMEDY}")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, a few lines in the file's place. Run `git lfs pull` in its folder, or "
            "download the file itself."
        )
    if length > HEADER_LIMIT_BYTES:
        raise CheckpointError(
            f"{path} is no safetensors file: it begins with {shown(ascii(start))}, not with a header's length. "
            f"Give another file; if it has been one, {AGAIN}."
        )
    if not 2 <= length <= size - 8:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: its header should be {length} bytes long in a file of "
            f"{size} bytes. {REMEDY}"
        )
    text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path} ended while its header was read: it changed meanwhile. {REMEDY}")
    return text


def _tensor(path: Path, name: str, entry: Any, origin: int, stamp: Stamp) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, stop)
        valid = {*map(type, numbers)} == {int} and min(numbers) >= 0
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for '{shown(name)}' is malformed. {REMEDY}") from error
    if not valid:
        raise CheckpointError(
            f"{path}: the header's entry for '{shown(name)}' has a negative or fractional number. {REMEDY}"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: '{shown(name)}' has dtype {shown(dtype)}, which is not supported; known: "
            f"{', '.join(DTYPES)}. Take the bf16 or fp16 version."
        )
    check_axes(path, name, shape)
    expected = math.prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: '{shown(name)}' ({dtype} {list(shape)}) needs {expected} bytes, its offsets give "
            f"{shown(stop - start)}. {REMEDY}"
        )
    return Tensor(path, name, dtype, shape, origin + start, stop - start, file_stamp=stamp)


def check_axes(path: Path, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) > AXES_LIMIT or max(shape, default=0) > AXIS_LIMIT:
        raise CheckpointError(
            f"{path}: '{shown(name)}' has the shape {shown(list(shape))}; up to {AXES_LIMIT} axes of up "
            f"to {AXIS_LIMIT} are possible. {REMEDY}"
        )


def _check_extents(path: Path, tensors: dict[str, Tensor], origin: int, size: int) -> None:
    """Tensors must follow each other without overlap or gap and end where the file ends."""
    end = origin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != end:
            word = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: '{shown(tensor.name)}' {word}. {REMEDY}")
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(f"{path} is {size} bytes long, its header describes {end} bytes. {REMEDY}")
