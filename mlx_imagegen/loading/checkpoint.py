"""safetensors files as named tensors that are read when asked for, whole or by rows.

In: a file, or a folder with one file or an index over shards. Out: `Checkpoint`, a mapping of names to `Tensor`
records (dtype, shape, place in the file), checked against the file's size before a byte of data is read.
We parse headers and pread the data ourselves: MLX's own loader reads a whole tensor to give one row, follows a file
that is overwritten under it, and cannot say what is wrong with a damaged one.
Must not know: model families, names' meanings, quantization.
"""

import functools
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, ImagegenError, MissingFileError
from ..layers.linear import Packing
from ..packing.bfloat import to_float32
from .config import read_json

# safetensors' dtype -> (the numpy type that carries its bytes, the MLX type those bytes are viewed as)
DTYPES: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "F64": (np.float64, mx.float32),  # a LoRA's alpha may be one; MLX narrows it
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "F8_E4M3": (np.uint8, mx.uint8),  # decoded by read(); MLX has no such array type
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
HEADER_LIMIT_BYTES = 100 * 2**20  # the format's own limit; real headers with a thumbnail in them reach about 100 kB
DAMAGED = "The file is damaged or its download did not finish: delete it and download it again."


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. `start` and `stop` are offsets from the beginning of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def stored_as(self) -> str:
        """The file's format; another than `dtype` where the numbers are computed from what is stored."""
        return self.dtype

    @property
    def floating(self) -> bool:
        return self.dtype == "F8_E4M3" or mx.issubdtype(DTYPES[self.dtype][1], mx.floating)

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
        """Single rows, in the order of `indices`: for embedding tables, which are never loaded whole."""
        outside = [index for index in indices if not 0 <= index < self.shape[0]]
        if outside:
            raise CheckpointError(
                f"{self.path}: '{self.name}' has {self.shape[0]} rows, row {outside[0]} was asked for."
            )
        rows = {index: self.bytes(index, 1) for index in sorted(set(indices))}
        return as_mlx(np.concatenate([rows[index] for index in indices]), self.dtype)


def as_mlx(array: np.ndarray, dtype: str) -> mx.array:
    kind = DTYPES[dtype][1]
    if dtype == "F8_E4M3":
        return mx.from_fp8(mx.array(array), mx.bfloat16)
    out = mx.array(array)
    return out if out.dtype == kind else out.view(kind)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one component, whatever number of files they lie in."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        paths: Sequence[Path],
        where: Path,
        packings: Mapping[str, Packing] = MappingProxyType({}),
    ):
        """`packings`: by module's name, where the file itself says how its weights are packed."""
        self.tensors = tensors
        self.paths = list(paths)
        self.where = where
        self.packings = packings

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @functools.cached_property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def stamp(self) -> str:
        """Changes when any file changes; for caches made from the weights."""
        parts = [f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.paths]
        return "|".join(parts)


def open_checkpoint(where: Path) -> Checkpoint:
    """Opens a .safetensors or .gguf file, or a folder holding one .safetensors file or an index over shards."""
    if where.is_file() and is_gguf(where):
        from .gguf import read_gguf

        gguf = read_gguf(where)
        return Checkpoint(gguf.tensors, [where], where, gguf.packings)
    if where.is_file():
        return Checkpoint(read_header(where)[0], [where], where)
    if not where.is_dir():
        raise MissingFileError(f"{where} is not there; download the model again, or point to a complete folder.")
    indexes = sorted(where.glob("*.safetensors.index*.json"))  # a variant is called *.safetensors.index.fp16.json
    if len(indexes) > 1:
        raise CheckpointError(
            f"{where} holds {len(indexes)} sets of weights ({indexes[0].name}, {indexes[1].name} …), and nothing says "
            "which is meant; leave the index of one."
        )
    if indexes:
        return _open_sharded(where, indexes[0])
    path = _only_file(where)
    return Checkpoint(read_header(path)[0], [path], where)


def is_gguf(path: Path) -> bool:
    with file_errors(path), path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".ckpt")]
    shards = [path.name for path in files if "-of-" in path.name]
    if shards:
        raise MissingFileError(f"{folder} holds shards ({shards[0]} …) but no index file (*.safetensors.index.json).")
    if files:
        raise CheckpointError(
            f"{folder} holds {len(files)} .safetensors files ({files[0].name}, {files[1].name} …) and no index that"
            " says how they belong together; leave one of them, or add the index."
        )
    if pickles:
        raise MissingFileError(
            f"{folder} holds {pickles[0]} but no .safetensors file; pickles can run code, so they are never opened. "
            "Convert it with safetensors.torch.save_file, or take the model's .safetensors files."
        )
    raise MissingFileError(
        f"{folder} holds no .safetensors file; download the model again, or point to a complete folder."
    )


def _open_sharded(folder: Path, index: Path) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no 'weight_map'; download it again.")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: 'weight_map' must give a file's name for every tensor; download it again.")
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise MissingFileError(
            f"{folder}: {len(absent)} of {len(names)} shards are missing ({', '.join(absent[:3])}), as {index.name}"
            " names them. The download did not finish: run it again."
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = read_header(folder / name)[0]
        twice = sorted(set(shard) & set(tensors))
        if twice:
            raise CheckpointError(
                f"{folder / name}: '{twice[0]}' also lies in {tensors[twice[0]].path.name}. {DAMAGED}"
            )
        tensors.update(shard)
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise CheckpointError(
            f"{index} names {len(lost)} tensors that no shard holds ({', '.join(lost[:3])}). {DAMAGED}"
        )
    return Checkpoint(tensors, [folder / name for name in names], folder)


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one file and its `__metadata__`; every offset is checked, so that reading can trust them."""
    try:
        with file_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            if size < 8:
                raise CheckpointError(
                    f"{path} is not a complete safetensors file: it is only {size} bytes long. {DAMAGED}"
                )
            length = struct.unpack("<Q", file.read(8))[0]
            if not 2 <= length <= min(size - 8, HEADER_LIMIT_BYTES):
                raise CheckpointError(
                    f"{path} is not a complete safetensors file: its header should be {length} bytes long in a file of "
                    f"{size} bytes. {DAMAGED}"
                )
            header = json.loads(file.read(length))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}). {DAMAGED}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object. {DAMAGED}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the header's '__metadata__' is not a JSON object. {DAMAGED}")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(path, tensors, 8 + length, size)
    return tensors, metadata


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """What goes wrong with the file itself, in our words."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is not there; download the model again.") from error
    except OSError as error:
        if isinstance(error, ImagegenError):
            raise
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); see to its permissions and its disk."
        ) from error


def _tensor(path: Path, name: str, entry: Any, origin: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for '{name}' is malformed. {DAMAGED}") from error
    if not whole:
        raise CheckpointError(f"{path}: the header's entry for '{name}' has a negative or fractional number. {DAMAGED}")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: '{name}' has dtype {dtype}, which is not supported; known: {', '.join(DTYPES)}. Take the bf16 or "
            "fp16 version."
        )
    expected = math.prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: '{name}' ({dtype} {list(shape)}) needs {expected} bytes, its offsets give {stop - start}. "
            + DAMAGED
        )
    return Tensor(path, name, dtype, shape, origin + start, origin + stop)


def _check_extents(path: Path, tensors: dict[str, Tensor], origin: int, size: int) -> None:
    """Tensors must follow each other without overlap or gap and end where the file ends."""
    end = origin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            word = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: '{tensor.name}' {word}. {DAMAGED}")
        end = tensor.stop
    if end != size:
        raise CheckpointError(f"{path} is {size} bytes long, its header describes {end} bytes. {DAMAGED}")


def read_exactly(tensor: Tensor, offset: int, target: memoryview) -> None:
    """Fills `target`; loops because one read call gives at most 2 GiB on Linux and macOS."""
    done = 0
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < len(target):
                count = file.readinto(target[done : done + 2**30])
                if not count:
                    raise CheckpointError(
                        f"{tensor.path} ended while '{tensor.name}' was read: it changed under us. {DAMAGED}"
                    )
                done += count
    except FileNotFoundError as error:
        raise MissingFileError(f"{tensor.path} went away before '{tensor.name}' was read; put it back.") from error
    except OSError as error:
        raise CheckpointError(
            f"{tensor.path}: '{tensor.name}' cannot be read ({error.strerror}); see to its permissions and its disk."
        ) from error
