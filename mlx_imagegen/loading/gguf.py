"""GGUF files: their headers, and their tensors with the interface of those of safetensors files.

In: a file. Out: its tensors by name, and its metadata. Weights that MLX's packing holds code for code come
as three tensors, `x.weight`, `x.scales` and `x.biases`, the others as float32 that is computed from their blocks when a
row is read. Every number of the header is checked before it is used, so that reading can trust them.
Must not know: model families, names' meanings.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..documents import Stamp, open_file, stamp_of
from ..errors import CheckpointError
from ..escaping import shown
from .blocks import BLOCK_FORMATS, BlockFormat, Codes, packed_part
from .safetensors import check_axes
from .tensor import AGAIN, DTYPES, REMEDY, TENSORS_LIMIT, Tensor, read_exactly

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# GGUF's number of a type -> safetensors' name.
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
# Formats whose codes stand for numbers of large tables, or that nobody publishes image models in.
REFUSED = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M"}
REFUSED |= {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Far above what is published: a vocabulary of 300,000 words takes 10 MB.
HEADER_LIMIT_BYTES = 2**26
MAX_DEPTH = 2  # of arrays in arrays
MAX_DIMS = 4  # the format's own limit
MAX_ALIGNMENT = 2**20
MAX_VALUES, MAX_KEYS = 2**21, 100_000  # in an array, in the header
KEPT_NUMBERS = 16  # arrays up to this length are kept, for shapes; vocabularies are not
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # a key, before the name of a tensor that is stored with other rows
ARCHITECTURE = "general.architecture"  # a key
SPLIT = "split.count"  # a key: of how many files this is one


@dataclass(frozen=True)
class BlockTensor(Tensor):
    """A matrix in blocks: float32, computed row by row."""

    blocks: BlockFormat

    def codes(self, row: int, rows: int | None) -> Codes:
        """Of whole rows: [rows * blocks in a row, …]"""
        in_row = math.prod(self.shape[1:]) // self.blocks.elements
        count = self.shape[0] - row if rows is None else rows
        raw = np.empty((count * in_row, self.blocks.nbytes), np.uint8)
        read_exactly(self, self.start + row * in_row * self.blocks.nbytes, raw.reshape(-1).data)
        with np.errstate(all="ignore"):  # a damaged file may hold infinities; they are found where they matter
            return self.blocks.decode(raw)

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self.codes(row, rows).floats().reshape(-1, *self.shape[1:])


@dataclass(frozen=True)
class PackedTensor(Tensor):
    """`weight`, `scales` or `biases` of a matrix in blocks, in MLX's packing."""

    source: BlockTensor
    part: str

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            values = packed_part(self.source.codes(row, rows), self.part, self.source.blocks)
            values = values.astype(DTYPES[self.dtype][0]).reshape(-1, self.shape[1])
        if self.part != "weight" and not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.path}: '{self.source.name}' ({self.stored_as}) has a scale that is not finite, or too large for"
                f" the 16 bits that it is held in. {REMEDY}"
            )
        return values


class _Cursor:
    """Reads a header piece by piece, never beyond the file's end nor beyond HEADER_LIMIT_BYTES."""

    def __init__(self, path: Path, file: IO[bytes], size: int):
        self.path = path
        self._file = file
        self._left = min(size, HEADER_LIMIT_BYTES)

    def fail(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a sound GGUF file: {reason}. {REMEDY}")

    def take(self, count: int) -> bytes:
        self.claim(count)
        data = self._file.read(count)
        if len(data) != count:
            raise self.fail("it ended while its header was read")
        return data

    def claim(self, count: int) -> None:
        """Raises for more bytes than there are."""
        if count > self._left:
            raise self.fail(f"its header asks for {count} bytes where {self._left} are left")
        self._left -= count

    def skip(self, count: int) -> None:
        self.claim(count)
        self._file.seek(count, 1)

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def count(self, what: str, nbytes: int, limit: int = HEADER_LIMIT_BYTES) -> int:
        """How many things follow, of at least so many bytes each."""
        count: int = self.number("Q")
        if count * nbytes > self._left or count > limit:
            raise self.fail(f"its header counts {count} {what}, for which it is too short, or which are too many")
        return count

    def text(self) -> str:
        raw = self.take(self.count("characters", 1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("a name in its header is not UTF-8") from error


def is_gguf(path: Path) -> bool:
    with open_file(path, CheckpointError, AGAIN) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path, packed: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One file's tensors and metadata. `packed`: whether weights come packed where MLX's packing holds them."""
    with open_file(path, CheckpointError, AGAIN) as file:
        stamp = stamp_of(file)
        size = os.fstat(file.fileno()).st_size
        cursor = _Cursor(path, file, size)
        if cursor.take(4) != MAGIC:
            raise cursor.fail("it does not begin with GGUF")
        version = cursor.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "its numbers are big-endian" if swapped else f"its version is {version}"
            raise CheckpointError(f"{path}: {what}; this library reads versions 2 and 3, little-endian. Convert it.")
        count = cursor.count("tensors", 24, TENSORS_LIMIT)
        metadata = _metadata(cursor, cursor.count("keys", 13, MAX_KEYS))
        tensors = [_tensor(cursor, metadata, stamp) for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
            raise cursor.fail(f"its alignment is {shown(alignment)}")
        origin = _aligned(file.tell(), alignment)
    if metadata.get(SPLIT, 0) not in (0, 1):
        raise CheckpointError(
            f"{path} is one of {metadata[SPLIT]} files of a split GGUF; join them with llama.cpp's gguf-split --merge."
        )
    stored = [replace(tensor, start=origin + tensor.start) for tensor in tensors]
    _check_extents(cursor, stored, (origin, size), alignment)
    return _presented(cursor, stored, packed), metadata


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text()
        if key in metadata:
            raise cursor.fail(f"the key '{shown(key)}' stands in it twice")
        metadata[key] = _value(cursor, key, cursor.number("I"))
    return metadata


def _value(cursor: _Cursor, key: str, kind: int, depth: int = 0) -> Any:
    """A scalar, a text or a short list of numbers; None for what is skipped."""
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == STRING:
        return cursor.text()
    if kind != ARRAY:
        raise cursor.fail(f"'{shown(key)}' has a value of type {kind}, which the format does not have")
    if depth == MAX_DEPTH:
        raise cursor.fail(f"'{shown(key)}' holds arrays in arrays, more than {MAX_DEPTH} deep")
    inner = cursor.number("I")
    if inner in SCALARS:
        width = struct.calcsize(SCALARS[inner])
        count = cursor.count("numbers", width)
        if count <= KEPT_NUMBERS:
            return [cursor.number(SCALARS[inner]) for _ in range(count)]
        cursor.skip(count * width)
        return None
    for _ in range(cursor.count("values", 8, MAX_VALUES)):
        if inner == STRING:
            cursor.skip(cursor.count("characters", 1))
        else:
            _value(cursor, key, inner, depth + 1)
    return None


def _tensor(cursor: _Cursor, metadata: Mapping[str, Any], stamp: Stamp) -> Tensor:
    """As the header has it: `start` counts from where the data begins."""
    name, dims = cursor.text(), cursor.number("I")
    if dims > MAX_DIMS:
        raise cursor.fail(f"'{shown(name)}' has {dims} axes, and the format has {MAX_DIMS} at most")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dims)]))
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind in REFUSED:
        raise CheckpointError(
            f"{cursor.path}: '{shown(name)}' is in {REFUSED[kind]}, which this library does not unpack; take a "
            f"file of another type ({', '.join(form.name for form in BLOCK_FORMATS.values())}, F16, BF16)."
        )
    if kind not in PLAIN and kind not in BLOCK_FORMATS:
        raise cursor.fail(f"'{shown(name)}' has type {kind}, which this library does not know")
    original = metadata.get(f"{ORIGINAL_SHAPE}{name}")
    if isinstance(original, list) and all(type(axis) is int and axis > 0 for axis in original):
        if math.prod(original) != math.prod(shape):
            raise cursor.fail(
                f"'{shown(name)}' has the shape {list(shape)}, and its original shape {original} is another"
            )
        shape = tuple(original)
    check_axes(cursor.path, name, shape)
    if kind in PLAIN:
        dtype = PLAIN[kind]
        nbytes = math.prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize
        return Tensor(cursor.path, name, dtype, shape, offset, nbytes, file_stamp=stamp)
    form, columns = BLOCK_FORMATS[kind], math.prod(shape[1:])
    if not shape or columns % form.elements:
        raise CheckpointError(
            f"{cursor.path}: '{shown(name)}' ({form.name}) has rows of {columns} numbers, which are no whole blocks of"
            f" {form.elements}; take a file whose rows are, or the F16 version."
        )
    nbytes = math.prod(shape) // form.elements * form.nbytes
    about: dict[str, Any] = {"format": form.name, "unpacked": True, "file_stamp": stamp}
    return BlockTensor(cursor.path, name, "F32", shape, offset, nbytes, form, **about)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _check_extents(cursor: _Cursor, tensors: list[Tensor], data: tuple[int, int], alignment: int) -> None:
    """Tensors must follow each other, each from the next multiple of the alignment, to the file's end."""
    end, size = data
    for tensor in tensors:
        if tensor.start != _aligned(end, alignment):
            word = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise cursor.fail(f"'{shown(tensor.name)}' {word}")
        end = tensor.start + tensor.nbytes
    if not end <= size <= _aligned(end, alignment):
        raise cursor.fail(f"it is {size} bytes long, and its header describes {end}")


def _presented(cursor: _Cursor, stored: list[Tensor], packed: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for tensor in stored:
        parts = [tensor]
        module, _, parameter = tensor.name.rpartition(".")
        if packed and isinstance(tensor, BlockTensor) and len(tensor.shape) == 2 and parameter == "weight":
            parts = _packed_tensors(tensor, module) or parts
        for part in parts:
            if part.name in tensors:
                raise cursor.fail(f"it has two tensors '{shown(part.name)}'")
            tensors[part.name] = part
    return tensors


def _packed_tensors(tensor: BlockTensor, module: str) -> list[Tensor]:
    """Weight, scales and biases, where MLX's packing holds the format."""
    packing, parts = tensor.blocks.packing, list[Tensor]()
    for part, shape in packing.packed_shapes(*tensor.shape).items() if packing else ():
        dtype = "U32" if part == "weight" else tensor.blocks.scale_dtype
        nbytes = math.prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize
        about: dict[str, Any] = {"format": tensor.format, "packing": packing if part == "weight" else None}
        place = tensor.path, f"{module}.{part}", dtype, shape, tensor.start, nbytes
        parts.append(PackedTensor(*place, tensor, part, numbers_shape=tensor.shape, **about))
    return parts
