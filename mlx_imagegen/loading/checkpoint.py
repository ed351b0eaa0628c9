"""Files as named tensors that are read on request, in full or by rows.

In: a file, or a folder with one file or an index over shards. Out: `Checkpoint`, a mapping of names to `Tensor`s.
Must not know: model families, names' meanings, how a format is laid out.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..documents import read_json
from ..errors import CheckpointError, MissingFileError
from ..escaping import listed, shown
from ..layers.linear import Packing
from ..paths import is_file_name, visible
from .comfy_quant import unpack_layers
from .gguf import ARCHITECTURE, is_gguf, read_gguf
from .parts import PARTS, open_parts
from .safetensors import read_header
from .tensor import DTYPES, REMEDY, Tensor, as_mlx

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
__all__ = ["DTYPES", "Checkpoint", "Tensor", "as_mlx", "open_checkpoint", "read_header"]


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one component, whatever number of files they lie in."""

    def __init__(self, tensors: Mapping[str, Tensor], paths: Sequence[Path], where: Path, architecture: str = ""):
        self.tensors = tensors
        self.paths = list(paths)
        self.where = where
        self.architecture = architecture  # what a GGUF file says that it is of

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
    def packings(self) -> dict[str, Packing]:
        """By module's name, where the file's own format says how its weights are packed."""
        packed = ((name, tensor.packing) for name, tensor in self.tensors.items())
        return {name.removesuffix(".weight"): packing for name, packing in packed if packing}

    @property
    def shown(self) -> Path:
        """What messages call it: its files, where these are not in its folder."""
        if all(path.is_relative_to(self.where) for path in self.paths):
            return self.where
        return Path(os.path.commonpath(self.paths))

    @property
    def stamp(self) -> str:
        """Changes when any file changes; for caches made from the weights."""
        parts = [f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.paths]
        return "|".join(parts)


def open_checkpoint(where: Path) -> Checkpoint:
    """Opens a .safetensors or .gguf file, or a folder with one .safetensors file, all shards of one set, or an
    index over shards."""
    if where.is_file():
        return _open_file(where)
    if not where.is_dir():
        raise MissingFileError(f"{where} is not there; download the model again, or point to a complete folder.")
    indexes = visible(where, "*.safetensors.index*.json")  # a variant is called *.safetensors.index.fp16.json
    if len(indexes) > 1:
        raise CheckpointError(
            f"{where} holds {len(indexes)} sets of weights ({indexes[0].name}, {indexes[1].name} …), and nothing says "
            "which is meant; leave the index of one."
        )
    if indexes:
        return _open_sharded(where, indexes[0])
    paths = visible(where, "*.safetensors")
    shards = [SHARD.fullmatch(path.name) for path in paths]
    if len(paths) == 1 and not shards[0]:
        return Checkpoint(_open_file(paths[0]), paths, where)
    if not _is_one_set(shards):
        raise _no_checkpoint(where, paths)
    return Checkpoint(unpack_layers(*_joined(paths), where), paths, where)


def _open_file(path: Path, packed: bool = True) -> Checkpoint:
    """`packed`: whether the weights of a GGUF file come packed where MLX's packing holds them."""
    if is_gguf(path):
        tensors, metadata = read_gguf(path, packed)
        return Checkpoint(tensors, [path], path, str(metadata.get(ARCHITECTURE, "")))
    return Checkpoint(unpack_layers(*read_header(path), path), [path], path)


def _is_one_set(shards: Sequence[re.Match[str] | None]) -> bool:
    """Whether the names of a folder's files say that they are all the shards of one set."""
    sets = {(shard[1], shard[3]) if shard else None for shard in shards}
    numbers = [int(shard[2]) for shard in shards if shard]
    (only,) = sets if len(sets) == 1 else (None,)
    return only is not None and numbers == list(range(1, int(only[1]) + 1))


def _no_checkpoint(folder: Path, files: Sequence[Path]) -> CheckpointError | MissingFileError:
    """Why the folder's files, without an index, are none."""
    if shards := [path.name for path in files if "-of-" in path.name]:
        return MissingFileError(f"{folder} holds shards ({shards[0]} …) but no index file (*.safetensors.index.json).")
    if files:
        return CheckpointError(
            f"{folder} holds {len(files)} .safetensors files ({files[0].name}, {files[1].name} …) and no index that"
            " says how they belong together; leave one of them, or add the index."
        )
    if pickles := [path.name for path in visible(folder, "*") if path.suffix in (".bin", ".pt", ".ckpt")]:
        return MissingFileError(
            f"{folder} holds {pickles[0]} but no .safetensors file; pickles can run code, so they are never opened. "
            "Convert it with safetensors.torch.save_file, or take the model's .safetensors files."
        )
    return MissingFileError(
        f"{folder} holds no .safetensors file; download the model again, or point to a complete folder."
    )


def _open_sharded(folder: Path, index: Path) -> Checkpoint:
    data = read_json(index)
    if PARTS in data:
        return Checkpoint(*open_parts(data, index, _open_file), folder)
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no 'weight_map'; download it again.")
    if odd := [name for name in weight_map.values() if not is_file_name(name)]:
        raise CheckpointError(
            f"{index}: 'weight_map' must give a file's name for every tensor, in the same folder, and gives "
            f"{shown(odd[0])}; download it again."
        )
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise MissingFileError(
            f"{folder}: {len(absent)} of {len(names)} shards are missing ({listed(absent)}), as {index.name}"
            " names them. The download did not finish: run it again."
        )
    paths = [folder / name for name in names]
    tensors, metadata = _joined(paths)
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{index} names {len(missing)} tensors that no shard holds ({listed(missing)}). {REMEDY}")
    return Checkpoint(unpack_layers(tensors, metadata, folder), paths, folder)


def _joined(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        shard, said = read_header(path)
        metadata |= said
        if duplicates := sorted(set(shard) & set(tensors)):
            raise CheckpointError(
                f"{path}: '{shown(duplicates[0])}' also lies in {tensors[duplicates[0]].path.name}. {REMEDY}"
            )
        tensors.update(shard)
    return tensors, metadata
