"""Operations that only move numbers or look them up; they must be exact."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..layers.conv import doubled
from ..layers.patches import patchified, unpatchified
from ..layers.strips import Cut, Strips
from ..loading.tensor import as_mlx
from ..precision import dtype_name
from .check import EXACT, Check, compared, drawn, dtypes, real


def exact(case: str, out: mx.array, expected: np.ndarray) -> Check:
    return compared("gathering and moving", case, out, expected, EXACT)


def movement_checks() -> Iterator[Check]:
    for dtype in dtypes():
        yield from gather_checks(dtype)
        yield from sequence_checks(dtype)
    yield from picture_checks(real(128, 24))
    yield fp8_check()


def gather_checks(dtype: mx.Dtype) -> Iterator[Check]:
    """T5's distances, [buckets, H] -> [H, L, L]; rows of a table, as modulation's; columns, as of a shared weight."""
    table, numbers = drawn(dtype, 32, 64)
    length = real(512, 64)
    buckets = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) % 32
    out = mx.contiguous(table.T[:, mx.array(buckets)])
    yield exact(f"columns, {dtype_name(dtype)}, [64, {length}, {length}]", out, numbers.T[:, buckets])
    table, numbers = drawn(dtype, 999, real(3072, 256))
    rows = np.arange(0, 999, 7)[::-1].copy()
    yield exact(f"rows, {dtype_name(dtype)}, {table.shape}", table[mx.array(rows)], numbers[rows])
    columns = np.r_[32:64, 128:192]
    out = mx.take(table, mx.array(columns), axis=1)
    yield exact(f"taken columns, {dtype_name(dtype)}, {out.shape}", out, numbers[:, columns])


def sequence_checks(dtype: mx.Dtype) -> Iterator[Check]:
    """A pad's state in front of a prompt's, and what a mask keeps of a picture."""
    pads, numbers = drawn(dtype, 1, 1, real(3072, 256))
    repeated = mx.repeat(pads, 77, axis=1)
    yield exact(f"repeated, {dtype_name(dtype)}, {repeated.shape}", repeated, numbers.repeat(77, axis=1))
    x, numbers = drawn(dtype, 1, 999, 64)
    mask = np.arange(999)[None, :, None] % 3 == 0
    kept = mx.where(mx.array(mask), x, mx.array(-1, dtype))
    yield exact(f"masked, {dtype_name(dtype)}, {x.shape}", kept, np.where(mask, numbers, -1))


def picture_checks(side: int) -> Iterator[Check]:
    x, numbers = drawn(mx.float32, 1, side, side, 16)
    expected = numbers.repeat(2, axis=1).repeat(2, axis=2)
    yield exact(f"doubled picture, {x.shape}", doubled(x), expected)
    strips = Strips(Cut(), [x[:, start : start + 5] for start in range(0, side, 5)])
    yield exact(f"rows of several strips, {x.shape}", strips.rows(3, 19), numbers[:, 3:19])
    padded = mx.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)])
    expected = np.pad(numbers, [(0, 0), (1, 0), (1, 0), (0, 0)])
    yield exact(f"uneven padding, {x.shape}", padded, expected)
    z, latents = drawn(mx.float32, 1, 16, side, side)
    tokens = latents.reshape(16, side // 2, 2, side // 2, 2).transpose(1, 3, 0, 2, 4).reshape(1, -1, 64)
    yield exact(f"patches, {z.shape}", patchified(z, 2), tokens)
    out = unpatchified(mx.array(tokens), (side // 2, side // 2), 2)
    yield exact(f"patches put together, {z.shape}", out, latents)


def fp8_check() -> Check:
    """Every code of E4M3 but its two NaNs."""
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    sign, exponent, mantissa = 1 - 2.0 * (codes >> 7), (codes >> 3) & 15, codes & 7
    normal = 2.0 ** (exponent.astype(np.float64) - 7) * (1 + mantissa / 8)
    expected = (sign * np.where(exponent == 0, 2.0**-6 * mantissa / 8, normal)).astype(np.float32)
    return exact("E4M3 numbers", as_mlx(codes, "F8_E4M3")[:, None], expected[:, None])
