"""Rows of a weight -> codes, scales and biases in MLX's affine format (w is about scale * code + bias, group by group).

In: rows in float32 and a `Packing`. Out: arrays that mx.dequantize and mx.quantized_matmul read. Two things are better
than in mx.quantize at the same size. Scales and biases are stored in 16 bits, and codes are rounded against the stored
numbers, not against the ones before rounding: that halves the error at 8 bits. And with `search`, a few scales are
tried in each group, each improved by least squares, and the best is kept. Everything is elementwise numpy in a fixed
order, so that the same weight gives the same bits on every machine, in memory or streamed, however its rows are cut;
mx.quantize rounds differently on Metal and on the CPU.
Must not know: files, recipes, models.
"""

import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..bfloat import from_bf16, round_bf16, to_bf16
from ..errors import QuantizationError
from ..layers.linear import Packing

BLOCK = 1 << 18  # weights worked on at a time: their float32 copies stay in the processor's cache
EXACT_BITS = 24  # of a whole number in float32
SMALLEST_SCALE = np.float32(1e-7)  # as in MLX: a group of equal weights must not divide by zero
# Where the search starts: what is cut off a group's range below and above, in parts of it. An outlier that is cut off
# can pay for finer steps elsewhere; with many levels it never does. Every start has a turn of codes and least squares,
# the one that is then ahead has the others: half the time of all turns for all, and 1% less close (benchmarks/LOG.md).
FEW_BITS = 4
STARTS = ((0.02, 0.02), (0.02, 0.1), (0.1, 0.02), (0.1, 0.1))
TURNS = 3
WIDE_STARTS, WIDE_TURNS = ((0.0, 0.0),), 2  # for more than FEW_BITS

Packed = dict[str, np.ndarray]


def pack(
    weight: mx.array, packing: Packing, search: bool = False, importance: np.ndarray | None = None
) -> dict[str, mx.array]:
    """A weight [rows, columns] in memory, on all cores. `importance`: how much each column counts, [columns]."""
    if packing.mode != "affine":
        return _pack_mode(weight, packing)
    rows = np.array(weight.astype(mx.float32))
    parts = [rows[start:stop] for start, stop in _blocks(*rows.shape)]
    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter's lock inside its loops
        packed = list(pool.map(lambda part: pack_rows(part, packing, search, importance), parts))
    return {name: as_mlx(np.concatenate([part[name] for part in packed])) for name in packed[0]}


def as_mlx(packed: np.ndarray) -> mx.array:
    """Codes as they are; scales and biases, carried as uint16, as bfloat16."""
    return mx.array(packed).view(mx.bfloat16) if packed.dtype == np.uint16 else mx.array(packed)


def pack_rows(rows: np.ndarray, packing: Packing, search: bool = False, importance: np.ndarray | None = None) -> Packed:
    """rows [R, K] in float32 -> weight (uint32), scales and biases (bfloat16 carried as uint16)."""
    if packing.mode != "affine":
        return {name: np.array(value) for name, value in _pack_mode(mx.array(rows), packing).items()}
    shapes = packing.packed_shapes(*rows.shape)
    out = {name: np.empty(shape, np.uint32 if name == "weight" else np.uint16) for name, shape in shapes.items()}
    for start, stop in _blocks(*rows.shape):
        groups = np.ascontiguousarray(rows[start:stop].reshape(-1, packing.group_size).T)  # [G, groups], a column each
        counts = None
        if importance is not None:  # as the groups: [G, groups]
            columns = importance.astype(np.float32).reshape(-1, packing.group_size).T
            counts = np.tile(columns, (1, stop - start))
        codes, scale, bias = fit(groups, packing.bits, search, counts)
        out["weight"][start:stop] = pack_codes(codes, packing.bits).T.reshape(stop - start, -1)
        out["scales"][start:stop] = to_bf16(scale).reshape(stop - start, -1)
        out["biases"][start:stop] = to_bf16(bias).reshape(stop - start, -1)
    return out


def fit(
    groups: np.ndarray, bits: int, search: bool = False, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """groups [G, n] -> codes [G, n] (float32 whole numbers), scale [n] and bias [n], both bfloat16 values."""
    levels = np.float32(2**bits - 1)
    low, high = groups.min(axis=0), groups.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise QuantizationError(
            "a weight holds a number that is not finite, so it cannot be quantized; the file is damaged."
        )
    scale, bias = _spanning(low, high, levels)
    if search:
        scale, bias = _searched(groups, bits, (low, high), (scale, bias), counts)
    return codes_for(groups, scale, bias, levels), scale, bias


def codes_for(groups: np.ndarray, scale: np.ndarray, bias: np.ndarray, levels: np.float32) -> np.ndarray:
    codes: np.ndarray = groups - bias
    codes *= np.float32(1) / scale
    np.rint(codes, out=codes)
    np.clip(codes, 0, levels, out=codes)
    return codes


def _spanning(low: np.ndarray, high: np.ndarray, levels: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The stored scale and bias that lay the codes over a range, middle on middle.

    The codes can run up from the low end or down from the high end: whichever of the two is nearer to a 16-bit number.
    """
    scale = np.maximum(round_bf16((high - low) / levels), SMALLEST_SCALE)
    middle, half = (low + high) * np.float32(0.5), scale * (levels * np.float32(0.5))
    up, down = round_bf16(middle - half), round_bf16(middle + half)
    turned = np.abs(down - (middle + half)) < np.abs(up - (middle - half))
    return np.where(turned, -scale, scale), np.where(turned, down, up)


def _searched(
    groups: np.ndarray,
    bits: int,
    ends: tuple[np.ndarray, np.ndarray],
    plain: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and bias with the least squared error that several starts lead to; never worse than the plain ones."""
    levels, span = np.float32(2**bits - 1), ends[1] - ends[0]
    starts, turns = (STARTS, TURNS) if bits <= FEW_BITS else (WIDE_STARTS, WIDE_TURNS)
    sums = _Sums.of(groups, counts)
    tries = []
    for below, above in starts:
        start = _spanning(ends[0] + np.float32(below) * span, ends[1] - np.float32(above) * span, levels)
        tries.append(np.stack(sums.least_squares(codes_for(groups, *start, levels), *start)))  # [3, n]
    scale, bias, _ = functools.reduce(lambda best, found: np.where(found[2] < best[2], found, best), tries)
    for _ in range(turns - 1):
        scale, bias, _ = sums.least_squares(codes_for(groups, scale, bias, levels), scale, bias)
    error = _error(groups, codes_for(groups, scale, bias, levels), scale, bias, counts)
    better = error < _error(groups, codes_for(groups, *plain, levels), *plain, counts)
    return np.where(better, scale, plain[0]), np.where(better, bias, plain[1])


@dataclass(frozen=True)
class _Sums:
    """Over each group, what least squares needs of the weights [G, n] alone: count, sum and sum of squares [n]."""

    groups: np.ndarray
    counts: np.ndarray | None
    total: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray, counts: np.ndarray | None) -> "_Sums":
        if counts is None:
            total = np.full(groups.shape[1], len(groups), np.float32)
            return cls(groups, None, total, groups.sum(axis=0), (groups * groups).sum(axis=0))
        weighted = groups * counts
        first = weighted.sum(axis=0)
        weighted *= groups
        return cls(groups, counts, counts.sum(axis=0), first, weighted.sum(axis=0))

    def least_squares(
        self, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best scale for these codes, rounded; then the best bias for it, rounded; and their squared error."""
        weighted = codes if self.counts is None else codes * self.counts
        code_sum, products = weighted.sum(axis=0), weighted * codes
        square_sum = products.sum(axis=0)
        product_sum = np.multiply(weighted, self.groups, out=products).sum(axis=0)
        spread = self.total * square_sum - code_sum * code_sum
        fits = spread > np.float32(1e-6) * self.total * square_sum  # otherwise all codes are equal: no slope
        slope = (self.total * product_sum - code_sum * self.first) / np.where(fits, spread, np.float32(1))
        fits &= np.abs(slope) >= SMALLEST_SCALE
        scale = np.where(fits, round_bf16(slope), scale)
        bias = np.where(fits, round_bf16((self.first - scale * code_sum) / self.total), bias)
        error = self.second + scale * (scale * square_sum - product_sum - product_sum)
        return scale, bias, error + bias * (bias * self.total + scale * code_sum * 2 - self.first - self.first)


def _error(
    groups: np.ndarray, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, counts: np.ndarray | None
) -> np.ndarray:
    difference = codes * scale
    difference += bias
    difference -= groups
    difference *= difference
    if counts is not None:
        difference *= counts
    total: np.ndarray = difference.sum(axis=0)
    return total


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes [G, n] -> words [G * bits / 32, n]: one little-endian stream of bits down each column."""
    while 2 * bits <= EXACT_BITS:  # neighbours become one number: fewer and wider steps below
        codes, bits = codes[0::2] + codes[1::2] * np.float32(2**bits), 2 * bits
    period = 32 // math.gcd(bits, 32)  # so many of them fill a whole number of words
    numbers = codes.astype(np.uint32).reshape(-1, period, codes.shape[1])
    words = np.zeros((len(numbers), period * bits // 32, numbers.shape[2]), np.uint32)
    for index in range(period):
        word, shift = divmod(index * bits, 32)
        words[:, word] |= numbers[:, index] << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= numbers[:, index] >> np.uint32(32 - shift)
    return words.reshape(-1, words.shape[2])


def unpack_rows(packed: Packed, packing: Packing) -> np.ndarray:
    """What mx.dequantize makes of it, in float32: [R, K]. For the affine format."""
    words, bits, rows = packed["weight"], packing.bits, len(packed["weight"])
    period = 32 // math.gcd(bits, 32)
    words = words.reshape(rows, -1, period * bits // 32).astype(np.uint64)
    codes = np.empty((rows, words.shape[1], period), np.float32)
    for index in range(period):
        word, shift = divmod(index * bits, 32)
        code = words[..., word] >> np.uint64(shift)
        if shift + bits > 32:
            code = code | (words[..., word + 1] << np.uint64(32 - shift))
        codes[..., index] = code & np.uint64(2**bits - 1)
    grids = (packed[name] for name in ("scales", "biases"))
    scales, biases = ((from_bf16(grid) if grid.dtype == np.uint16 else grid)[..., None] for grid in grids)
    values: np.ndarray = codes.reshape(rows, -1, packing.group_size) * scales + biases
    return values.reshape(rows, -1)


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _pack_mode(weight: mx.array, packing: Packing) -> dict[str, mx.array]:
    """mxfp4, nvfp4 and mxfp8 have no bias and scales in a format of their own: MLX's packer, always its CPU one."""
    with mx.stream(mx.cpu):
        parts = mx.quantize(weight.astype(mx.float32), packing.group_size, packing.bits, mode=packing.mode)
        mx.eval(parts)
    return dict(zip(("weight", "scales", "biases"), parts, strict=False))
