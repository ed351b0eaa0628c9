"""The header of a safetensors file, checked against the file's size before a byte of data is read.

In: a file. Out: its tensors by name, and its metadata. MLX's own loader cannot say what is wrong with a damaged one.
Must not know: names' meanings, quantization.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .tensor import DTYPES, REMEDY, Tensor, file_errors

HEADER_LIMIT_BYTES = 100 * 2**20  # the format's own limit; real headers with a thumbnail in them reach about 100 kB


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one file and its `__metadata__`; every offset is checked, so that reading can trust them."""
    try:
        with file_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            if size < 8:
                raise CheckpointError(
                    f"{path} is not a complete safetensors file: it is only {size} bytes long. {REMEDY}"
                )
            length = struct.unpack("<Q", file.read(8))[0]
            if not 2 <= length <= min(size - 8, HEADER_LIMIT_BYTES):
                raise CheckpointError(
                    f"{path} is not a complete safetensors file: its header should be {length} bytes long in a file of "
                    f"{size} bytes. {REMEDY}"
                )
            header = json.loads(file.read(length))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}). {REMEDY}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object. {REMEDY}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the header's '__metadata__' is not a JSON object. {REMEDY}")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(path, tensors, 8 + length, size)
    return tensors, metadata


def _tensor(path: Path, name: str, entry: Any, origin: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for '{name}' is malformed. {REMEDY}") from error
    if not valid:
        raise CheckpointError(f"{path}: the header's entry for '{name}' has a negative or fractional number. {REMEDY}")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: '{name}' has dtype {dtype}, which is not supported; known: {', '.join(DTYPES)}. Take the bf16 or "
            "fp16 version."
        )
    expected = math.prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: '{name}' ({dtype} {list(shape)}) needs {expected} bytes, its offsets give {stop - start}. "
            + REMEDY
        )
    return Tensor(path, name, dtype, shape, origin + start, origin + stop)


def _check_extents(path: Path, tensors: dict[str, Tensor], origin: int, size: int) -> None:
    """Tensors must follow each other without overlap or gap and end where the file ends."""
    end = origin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            word = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: '{tensor.name}' {word}. {REMEDY}")
        end = tensor.stop
    if end != size:
        raise CheckpointError(f"{path} is {size} bytes long, its header describes {end} bytes. {REMEDY}")
