"""ComfyUI's quantized safetensors files: codes and scales in several tensors -> one tensor of numbers each.

In: a file's tensors and metadata. Out: the same tensors, with every quantized weight as float32 that is computed row by
row: fp8 with or without a scale, mxfp8, nvfp4, int8 and int8 that was rotated (convrot). A layer's format stands in
its `comfy_quant` tensor or in the file's metadata; older fp8 files say nothing and have a scale. Formats of 4-bit
activations are refused by name. Must not know: layers, families.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bfloat import to_float32
from ..documents import parse_object
from ..errors import CheckpointError
from ..escaping import quoted, shown
from .tensor import AGAIN, REMEDY, Tensor

METADATA = "_quantization_metadata"
FORMAT = ".comfy_quant"
FP8 = ("F8_E4M3", "F8_E5M2")
SCALES = (".weight_scale", ".scale_weight")  # the new name and the old one
SCALE_2, INPUT_FACTORS = ".weight_scale_2", ".pre_quant_scale"
# Notes for kernels that quantize activations; they change no weight.
NOTES = (".input_scale", ".scale_input", FORMAT)
FP8_MARK = "scaled_fp8"
READ = ("float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "int8_tensorwise")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
HADAMARD_4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float32)


@dataclass(frozen=True)
class ScaledTensor(Tensor):
    """fp8 or int8 numbers with one scale, or one for each row; `rotation`: over how many columns they were rotated."""

    codes: Tensor
    scale: Tensor
    rotation: int

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        values: np.ndarray = self.codes.floats(row, rows)
        scales = self.scale.floats().reshape(-1, *[1] * (values.ndim - 1))
        values = values * (scales if len(scales) == 1 else scales[row : row + len(values)])
        if self.rotation:  # the matrix is its own inverse
            groups = values.reshape(len(values), -1, self.rotation)
            values = (groups @ hadamard(self.rotation)).reshape(values.shape)
        return values


@dataclass(frozen=True)
class BlockScaledTensor(Tensor):
    """mxfp8 or nvfp4: a scale for each 32 or 16 numbers of a row, in the order of a GPU's tiles."""

    codes: Tensor
    scale: Tensor
    factor: Tensor | None  # of all scales
    input_factors: Tensor | None  # of each column

    def bytes(self, row: int = 0, rows: int | None = None) -> np.ndarray:
        raw = self.codes.bytes(row, rows)
        values: np.ndarray = to_float32(raw, self.codes.dtype) if self.stored_as == "mxfp8" else _e2m1(raw)
        scales = untiled(self.scale.floats(), self.shape[0], self.shape[1] // _block(self.stored_as))
        scales = scales[row : row + len(values)]
        if self.factor is not None:
            scales = self.factor.floats().reshape(()) * scales
        values = (values.reshape(*scales.shape, -1) * scales[..., None]).reshape(len(values), -1)
        return values if self.input_factors is None else values * self.input_factors.floats().reshape(-1)


def unpack_layers(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: Path) -> Mapping[str, Tensor]:
    """The tensors with every quantized weight as numbers; what belonged to one is no longer there."""
    formats = _formats(tensors, metadata, where)
    scaled = {name.removesuffix(end) for name in tensors for end in SCALES if name.endswith(end)}
    out, dropped = {}, {name for name in tensors if name.rpartition(".")[2] == FP8_MARK}
    for layer in dict.fromkeys([*formats, *sorted(scaled)]):
        weight = tensors.get(f"{layer}.weight")
        if weight is not None and (layer in formats or weight.dtype in FP8):
            parts = {end: tensors.get(layer + end) for end in (*SCALES, SCALE_2, INPUT_FACTORS)}
            out[weight.name] = _unpacked(weight, formats.get(layer, {}), parts)
            dropped |= {layer + end for end in parts}
    if not out and not any(name.endswith(FP8_MARK) for name in tensors):
        return tensors
    dropped |= {f"{name.removesuffix('.weight')}{end}" for name in tensors for end in NOTES}
    return {name: out.get(name, tensor) for name, tensor in tensors.items() if name not in dropped}


def _formats(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: Path) -> dict[str, dict[str, Any]]:
    """Layer -> what is said of it."""
    out = {}
    texts = {name.removesuffix(FORMAT): tensor for name, tensor in tensors.items() if name.endswith(FORMAT)}
    if METADATA in metadata:
        named = parse_object(metadata[METADATA], f"{where}: the metadata's '{METADATA}'", CheckpointError, AGAIN).get(
            "layers", {}
        )
        out = {str(layer): said for layer, said in named.items()} if isinstance(named, dict) else {}
    for layer, tensor in texts.items():
        out[layer] = parse_object(tensor.bytes().tobytes(), f"{tensor.path}: '{tensor.name}'", CheckpointError, AGAIN)
    for layer, said in out.items():
        if not isinstance(said, dict) or said.get("format") not in READ:
            name = said.get("format") if isinstance(said, dict) else said
            raise CheckpointError(
                f"{where}: '{shown(layer)}' is in the format {quoted(name)}, which this library does not unpack; it "
                f"reads {', '.join(READ)}. Take the bf16, fp8 or int8 version."
            )
    return out


def _unpacked(weight: Tensor, said: Mapping[str, Any], parts: Mapping[str, Tensor | None]) -> Tensor:
    """`said`: what the file says of the layer; `parts`: its other tensors, by how their names end."""
    form = said.get("format") or ("float8_e4m3fn" if weight.dtype == "F8_E4M3" else "float8_e5m2")
    scale = next((part for end in SCALES if (part := parts[end])), None)
    factor, inputs = parts[SCALE_2], parts[INPUT_FACTORS]
    place = weight.path, weight.name, "F32"
    about: dict[str, Any] = {"format": form, "unpacked": True}
    if form in ("mxfp8", "nvfp4"):
        shape = (weight.shape[0], weight.shape[-1] * (2 if form == "nvfp4" else 1))
        _check_blocks(weight, scale, form, shape, factor, inputs)
        assert scale is not None
        return BlockScaledTensor(*place, shape, weight.start, weight.nbytes, weight, scale, factor, inputs, **about)
    rotation = _rotation(said, weight) if form == "int8_tensorwise" else 0
    if weight.dtype != {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}.get(form, "I8"):
        raise _unfit(weight, f"is said to be {form}")
    if scale is None and form != "int8_tensorwise":
        return weight
    if scale is None or not scale.floating or math.prod(scale.shape) not in (1, weight.shape[0]):
        kind = f"'{scale.name}' ({scale.dtype} {list(scale.shape)})" if scale else "no scale"
        raise CheckpointError(
            f"{weight.path}: {kind} is neither one scale for '{weight.name}' nor one for each of its rows: a format "
            "with a scale for each block, of which the file says nothing. Take the bf16 version."
        )
    return ScaledTensor(*place, weight.shape, weight.start, weight.nbytes, weight, scale, rotation, **about)


def _check_blocks(
    weight: Tensor,
    scale: Tensor | None,
    form: str,
    shape: tuple[int, int],
    factor: Tensor | None,
    inputs: Tensor | None,
) -> None:
    dtypes = ("F8_E4M3", "F8_E8M0") if form == "mxfp8" else ("U8", "F8_E4M3")
    if len(weight.shape) != 2 or weight.dtype != dtypes[0] or shape[1] % _block(form):
        raise _unfit(weight, f"is said to be {form}")
    tiles = -(-shape[0] // 128) * 128, -(-shape[1] // _block(form) // 4) * 4
    accepted = (dtypes[1], "U8") if form == "mxfp8" else dtypes[1:]
    if scale is None or scale.dtype not in accepted or math.prod(scale.shape) != math.prod(tiles):
        raise _unfit(weight, f"is {form}, and its scales are not {list(tiles)} in {dtypes[1]}")
    if factor is not None and math.prod(factor.shape) != 1:
        raise _unfit(weight, f"is {form}, and '{factor.name}' is not one number")
    if inputs is not None and math.prod(inputs.shape) != shape[1]:
        raise _unfit(weight, f"has {shape[1]} columns, and '{inputs.name}' has {math.prod(inputs.shape)} numbers")


def _rotation(said: Mapping[str, Any], weight: Tensor) -> int:
    if not said.get("convrot"):
        return 0
    size = said.get("convrot_groupsize", 256)
    power = type(size) is int and size >= 4 and size & (size - 1) == 0 and size.bit_length() % 2 == 1
    if not power or len(weight.shape) != 2 or weight.shape[1] % size:
        raise _unfit(weight, f"is said to be rotated over {size!r} columns")
    return int(size)


def _unfit(weight: Tensor, what: str) -> CheckpointError:
    return CheckpointError(
        f"{weight.path}: '{weight.name}' ({weight.dtype} {list(weight.shape)}) {what}, which does not fit. {REMEDY}"
    )


def _block(form: str) -> int:
    return 32 if form == "mxfp8" else 16


def _e2m1(raw: np.ndarray) -> np.ndarray:
    """[R, K / 2] bytes, the first number in the high half -> [R, K]"""
    return E2M1[np.stack([raw >> 4, raw & 15], axis=-1)].reshape(len(raw), -1)


def untiled(scales: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Scales in a GPU's tiles of 128 rows by 4 columns, rows that are 32 apart next to each other -> [rows, columns]"""
    tiles = scales.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4)  # [row tile, column tile, row, quarter, column]
    return tiles.transpose(0, 3, 2, 1, 4).reshape(-(-rows // 128) * 128, -1)[:rows, :columns]


@functools.cache
def hadamard(size: int) -> np.ndarray:
    """The orthogonal matrix that int8 weights were rotated with; symmetric."""
    matrix = HADAMARD_4
    while len(matrix) < size:
        matrix = np.kron(matrix, HADAMARD_4)
    return matrix / np.float32(math.sqrt(size))
