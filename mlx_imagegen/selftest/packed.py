"""Packed products and unpacking, in every packing that a recipe or a published folder can use.

On some chips and versions of MLX, quantized products were wrong for many rows or for odd widths, without an error; a
picture shows it only as noise. NumPy reads the values of a packed weight from its bits.
"""

import functools
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..families import family_specs
from ..layers.linear import DENSE, GROUP_SIZES, PACKED, Packing, packed_matmul, unpacked
from ..packing.recipes import read_recipe, recipe_names
from ..precision import compute_dtype, dtype_name, emulates_bfloat16, on_gpu
from .check import ROUNDING, Check, as_numpy, compared, drawn

PRODUCT, UNPACK = "packed product", "unpacking"
# Looser than a dense product's: on the CPU MLX's quantized kernel accumulates in the dtype of its input.
LIMITS = {mx.bfloat16: 0.03, mx.float16: 0.02, mx.float32: 0.005}
MANY = 32_768  # rows after which kernels of some versions went wrong
BITS = (4, 5, 6, 8)  # of the recipes here and of folders that others publish


def packed_checks(packings: Sequence[Packing] | None = None) -> Iterator[Check]:
    """Both kernels, on the shapes that matter."""
    for packing in packings_in_use() if packings is None else packings:
        for tokens, rows, columns in shapes(packing):
            yield from product_checks(packing, tokens, rows, columns)
        yield run_check(packing)
        yield unpacking_check(packing)


def shapes(packing: Packing) -> list[tuple[int, int, int]]:
    """(tokens, rows, columns): one token, few, a picture; above 32,768 on either side; an odd number of groups."""
    odd = 33 * packing.group_size  # with groups of 32 not a multiple of 64
    # The CPU has one packed kernel for all shapes, and a slow one.
    picture, width, narrow = (4096, 3072, 64) if on_gpu() else (33, 256, 8)
    few = [(1, width, 3072), (picture, width, 3072), (7, 640, odd), (77, narrow, odd)]
    return [*few, (MANY + 9, narrow, 3 * packing.group_size), (3, MANY + 72, 128)]


def product_checks(packing: Packing, tokens: int, rows: int, columns: int) -> Iterator[Check]:
    columns = max(packing.group_size, columns // packing.group_size * packing.group_size)
    for dtype in dict.fromkeys((compute_dtype(), mx.float16 if emulates_bfloat16() else compute_dtype())):
        x, numbers = drawn(dtype, tokens, columns)
        packed, dense = _weight(packing, rows, columns, dtype)
        expected = numbers @ dense.T
        for kernel in (PACKED, DENSE):
            out = packed_matmul(x, packed["weight"], packed["scales"], packed.get("biases"), packing, kernel)
            shape = f"[{tokens}, {columns}] x [{rows}, {columns}]"
            case = f"{kernel}, {dtype_name(dtype)}, {_named(packing)}, {shape}"
            yield compared(PRODUCT, case, out, expected, LIMITS[dtype])


def run_check(packing: Packing) -> Check:
    """Rows from the middle of a weight, which are not copied, as where FLUX.2's v, gate and up follow its q and k."""
    dtype, (tokens, columns), rows = compute_dtype(), (33, 4 * packing.group_size), slice(96, 224)
    x, numbers = drawn(dtype, tokens, columns)
    packed, dense = _weight(packing, 320, columns, dtype)
    run = {name: value[rows] for name, value in packed.items()}
    out = packed_matmul(x, run["weight"], run["scales"], run.get("biases"), packing, PACKED)
    case = f"{PACKED}, {dtype_name(dtype)}, {_named(packing)}, rows from the middle of a weight"
    return compared(PRODUCT, case, out, numbers @ dense[rows].T, LIMITS[dtype])


def unpacking_check(packing: Packing) -> Check:
    """In float32, as when a LoRA is merged."""
    packed, dense = _weight(packing, 320, 3072 + packing.group_size, compute_dtype())
    return compared(UNPACK, _named(packing), unpacked(packed, packing), dense, ROUNDING[mx.float32])


def packings_in_use() -> list[Packing]:
    """What the recipes can ask for, with the smaller groups they fall back to, and the common affine ones."""
    found = {Packing(bits, size) for bits in BITS for size in GROUP_SIZES["affine"]}
    for name in recipe_names():
        for spec in family_specs():
            wanted = {row.packing for row in read_recipe(name, spec.name).rows if row.packing}
            for packing in wanted:
                sizes = [size for size in GROUP_SIZES[packing.mode] if size <= packing.group_size]
                found |= {Packing(packing.bits, size, packing.mode) for size in sizes}
    return sorted(found, key=lambda packing: (packing.mode, packing.bits, packing.group_size))


def _named(packing: Packing) -> str:
    return f"{packing.bits} bits in groups of {packing.group_size} ({packing.mode})"


@functools.lru_cache(maxsize=1)
def _weight(packing: Packing, rows: int, columns: int, dtype: mx.Dtype) -> tuple[dict[str, mx.array], np.ndarray]:
    """A packed matrix, and the numbers that it stands for."""
    weight, _ = drawn(mx.float32, rows, columns, part=3)
    with mx.stream(mx.cpu):
        parts = mx.quantize(weight, packing.group_size, packing.bits, mode=packing.mode)
        packed = dict(zip(("weight", "scales", "biases"), parts, strict=False))
        if packing.mode == "affine":  # as files have them; the other computation starts from the same 16 bits
            packed = {name: value.astype(dtype) if name != "weight" else value for name, value in packed.items()}
        mx.eval(packed)
        affine = packing.mode == "affine"
        return packed, _affine_numbers(packed, packing) if affine else np.array(unpacked(packed, packing))


def _affine_numbers(packed: dict[str, mx.array], packing: Packing) -> np.ndarray:
    """code * scale + bias; the codes lie one after the other, lowest bits first."""
    words = np.array(packed["weight"])
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    places = bits.reshape(len(words), -1, packing.bits)
    codes = np.zeros(places.shape[:2], np.float32)
    for place in range(packing.bits):
        codes += places[:, :, place] * np.float32(2**place)
    scales, biases = (np.repeat(as_numpy(packed[name]), packing.group_size, axis=1) for name in ("scales", "biases"))
    return np.asarray(codes * scales + biases)
