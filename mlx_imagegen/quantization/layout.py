"""What a quantized checkpoint will hold: every tensor's form and place, worked out from headers alone.

In: an open family's weights and a `Recipe`. Out: one `Layout` a component: its pieces in the order of the source files,
cut into files of at most 4 GB, each file's header, and the component's config.json. The converter fills these in; the
plan prints them.
Must not know: tensors' values.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import QuantizationError
from ..families.base import Family
from ..folding import Fold
from ..layers.linear import Packing
from ..loading.checkpoint import DTYPES
from ..loading.comfy_quant import FP8
from ..loading.tensor import Tensor
from ..loading.weights import Weights
from ..packing.recipes import Recipe, fitted

SHARD_BYTES = 4 * 10**9  # FAT32 holds files of less than 4 GiB; a file is copied, checked and resumed as one piece
TABLE_DTYPE = "F32"  # tables are small, and the loop's activations are float32 on the CPU
SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return np.dtype(DTYPES[self.dtype][0]).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Piece:
    """One of our tensors: where it is read, and what is written for it."""

    component: str
    path: str  # our module's
    parameter: str
    name: str  # the module's name in the written file; our own, or the source's where that is kept
    part: Tensor
    packing: Packing | None
    dtype: str  # written, if it is not packed
    note: str = ""
    columns: int = 0  # of the table that takes a folded layer's place; 0 if it is not folded
    bias: Tensor | None = None  # a folded layer's, which goes into its table

    @property
    def key(self) -> str:
        return f"{self.component}/{self.name}.{self.parameter}"

    @property
    def count(self) -> int:
        """How many numbers the source holds."""
        return math.prod(self.part.shape)

    @property
    def weights(self) -> int:
        """How many numbers the model has in it: none in the scales of a packed weight."""
        if self.parameter in ("scales", "biases"):
            return 0
        return math.prod(self.part.full_shape) if self.part.packing else self.count

    @functools.cached_property
    def outputs(self) -> dict[str, Stored]:
        """The parts that are written: weight, scales and biases, or the one tensor."""
        stem = f"{self.name}." if self.name else ""
        if self.columns:
            return {"table": Stored(f"{stem}table", TABLE_DTYPE, (self.part.shape[0], self.columns))}
        if self.packing is None:
            return {self.parameter: Stored(stem + self.parameter, self.dtype, self.part.shape)}
        scales = "BF16" if self.packing.mode == "affine" else "U8"
        shapes = self.packing.packed_shapes(*self.part.shape)
        return {
            part: Stored(stem + part, "U32" if part == "weight" else scales, shape) for part, shape in shapes.items()
        }

    @property
    def nbytes(self) -> int:
        return sum(stored.nbytes for stored in self.outputs.values())


@dataclass(frozen=True)
class Shard:
    """One file to be written."""

    name: str
    pieces: tuple[Piece, ...]
    header: bytes
    offsets: Mapping[str, int]  # tensor name -> place in the file

    @classmethod
    def of(cls, name: str, pieces: Sequence[Piece]) -> "Shard":
        # Wide numbers first, so that each tensor begins at a multiple of its numbers' size.
        tensors = sorted((out for piece in pieces for out in piece.outputs.values()), key=lambda out: -out.itemsize)
        entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        offsets, end = {}, 0
        for out in tensors:
            offsets[out.name] = end
            entries[out.name] = {"dtype": out.dtype, "shape": out.shape, "data_offsets": [end, end + out.nbytes]}
            end += out.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        places = {tensor: len(header) + offset for tensor, offset in offsets.items()}
        return cls(name, tuple(pieces), header, places)

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Layout:
    """One component."""

    component: str
    place: str  # folder, relative to the checkpoint's
    pieces: tuple[Piece, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, object]
    in_place: bool  # False: the source keeps it in one file of another layout, without a config.json
    fold: Fold | None = None
    stored: Mapping[str, Packing] = field(default_factory=dict)  # weights that stay packed as the source has them

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def packings(self) -> dict[str, Packing]:
        return {piece.path: piece.packing for piece in self.pieces if piece.packing}

    @property
    def bits_per_weight(self) -> float:
        """Of the weights that are left."""
        pieces = [piece for piece in self.pieces if not piece.columns]
        return 8 * sum(piece.nbytes for piece in pieces) / max(1, sum(piece.weights for piece in pieces))

    @property
    def kept_lines(self) -> list[str]:
        """Which weights the source's own format has packed, and which it makes us unpack."""
        kept, unpacked = Counter[str](), Counter[str]()
        for piece in self.pieces:
            tensor = piece.part
            if piece.parameter == "weight" and (tensor.packing or tensor.unpacked):
                (kept if tensor.packing else unpacked)[tensor.stored_as] += 1
        listed = ", ".join(f"{count} in {name}" for name, count in kept.items())
        lines = [f"weights stay packed as the file has them, without rounding again: {listed}"] if kept else []
        listed = ", ".join(f"{count} in {name}" for name, count in unpacked.items())
        return lines + ([f"weights are unpacked, and packed as the recipe says: {listed}"] if unpacked else [])

    def index(self) -> dict[str, Any] | None:
        """The index file's content, where there are several files."""
        if len(self.shards) == 1:
            return None
        names = {
            out.name: shard.name for shard in self.shards for piece in shard.pieces for out in piece.outputs.values()
        }
        return {"metadata": {"total_size": sum(piece.nbytes for piece in self.pieces)}, "weight_map": names}

    def index_name(self) -> str:
        return SHARD_SUFFIX.sub("", Path(self.shards[0].name).stem) + ".safetensors.index.json"

    def written_config(self) -> dict[str, object] | None:
        """config.json as it will be; None where it does not change."""
        if not self.packings and self.fold is None:
            return None if self.in_place else dict(self.config)
        entries = {path: asdict(packing) for path, packing in {**self.stored, **self.packings}.items()}
        packed = {"quantization": entries} if entries else {}
        folded = {"mlx_imagegen": {"folded": self.fold.folded.entry()}} if self.fold else {}
        return {**self.config, **packed, **folded}


def layouts(family: Family[Any], folder: Path, recipe: Recipe, fold: Fold | None = None) -> list[Layout]:
    """Every component of an open family, each checkpoint once."""
    return [
        layout(weights, folder, recipe, fold if fold and fold.component == name else None)
        for name, weights in family.weights.items()
    ]


def layout(weights: Weights, folder: Path, recipe: Recipe, fold: Fold | None = None) -> Layout:
    where = weights.checkpoint.where
    same = all(name == part.name for name, part in weights.slices.items())
    in_place = where.is_dir() or same  # else the source is one file of another layout: it gets our names and a folder
    pieces = tuple(_pieces(weights, recipe, where.is_dir(), fold))
    root = where if where.is_dir() else where.parent
    place = root.relative_to(folder).as_posix() if in_place else weights.component
    stem = SHARD_SUFFIX.sub("", weights.checkpoint.paths[0].stem) if in_place else "diffusion_pytorch_model"
    shards = tuple(_shards(pieces, stem))
    return Layout(weights.component, place, pieces, shards, weights.config, in_place, fold, weights.stored)


def _pieces(weights: Weights, recipe: Recipe, keep_names: bool, fold: Fold | None) -> Iterator[Piece]:
    """In the order of the source's bytes, so that reading goes forwards."""
    parts = sorted(weights.slices.items(), key=lambda item: (str(item[1].path), item[1].start))
    for name, part in parts:
        if recipe.drops(weights.component, name):
            if name in weights.needed:
                raise QuantizationError(
                    f"the recipe {recipe.name} drops '{weights.component}/{name}', which the model cannot draw without;"
                    " drop only what it never reads."
                )
            continue
        path, _, parameter = name.rpartition(".")
        written = part.name.rpartition(".")[0] if keep_names else path
        if fold and path in fold.linears | fold.gone:
            if path in fold.linears and parameter == "weight":
                bias = weights.slices.get(f"{path}.bias")
                yield Piece(
                    weights.component, path, parameter, written, part, None, TABLE_DTYPE, columns=fold.count, bias=bias
                )
            continue
        packing, note = None, ""
        if parameter == "weight" and path in weights.linears and path not in weights.stored:
            row_packing = recipe.row_packing(weights.component, path, weights.depth(path))
            packing = fitted(row_packing, part.shape)
            note = _fallback(part.shape, row_packing, packing)
        if path in weights.stored and parameter in weights.stored[path].parts:
            dtype = "F16" if part.dtype == "F32" else part.dtype
        else:
            dtype = _dense_dtype(part, recipe.rounds_to_16_bits(weights.component))
        yield Piece(weights.component, path, parameter, written, part, packing, dtype, note)


def _dense_dtype(part: Tensor, round_to_16_bits: bool) -> str:
    """Matrices of 32 bits become 16, if the recipe says so; vectors, [C, 1, 1] too, stay: they are small."""
    stored, matrix = part.dtype, math.prod(part.shape) > max(part.shape, default=1)
    if part.unpacked or stored in FP8 or (stored == "F32" and matrix and round_to_16_bits):
        return "BF16"
    return stored


def _fallback(shape: Sequence[int], row_packing: Packing | None, packing: Packing | None) -> str:
    if row_packing == packing or row_packing is None:
        return ""
    columns = f"{shape[-1]} columns are not a multiple of {row_packing.group_size}"
    return f"{columns}: kept at 16 bits" if packing is None else f"{columns}: groups of {packing.group_size}"


def _shards(pieces: Sequence[Piece], stem: str) -> Iterator[Shard]:
    runs: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if runs[-1] and size + piece.nbytes > SHARD_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(piece)
        size += piece.nbytes
    for number, run in enumerate(runs, 1):
        name = f"{stem}.safetensors" if len(runs) == 1 else f"{stem}-{number:05}-of-{len(runs):05}.safetensors"
        yield Shard.of(name, run)
