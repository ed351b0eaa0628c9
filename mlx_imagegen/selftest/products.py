"""Dense products: linear layers with and without bias, from one token to a whole picture's."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..layers.linear import Linear
from ..precision import dtype_name
from .check import ROUNDING, Check, compared, drawn, dtypes, real

PRODUCT = "dense product"


def product_checks() -> Iterator[Check]:
    for dtype in dtypes():
        for tokens, rows, columns, bias in shapes():
            yield product_check(dtype, tokens, rows, columns, bias)
        yield parts_check(dtype, real(4608, 129), real(3072, 192))


def shapes() -> list[tuple[int, int, int, bool]]:
    """(tokens, rows, columns, bias): FLUX.1's and Qwen-Image's projections and feed-forward, HiDream-O1's odd 1,025
    tokens, T5's, CLIP's, and modulation's one row."""
    width, wide = real(3072, 192), real(12_288, 320)
    return [
        (real(4608, 129), width, width, True),
        (real(4096, 65), wide, width, True),
        (real(4096, 65), width, wide, True),
        (real(1025, 33), wide, real(4096, 192), False),
        (real(512, 33), real(10_240, 320), real(4096, 192), False),
        (77, real(768, 192), real(768, 192), True),
        (1, 3 * width, width, True),
    ]


def product_check(dtype: mx.Dtype, tokens: int, rows: int, columns: int, bias: bool) -> Check:
    x, numbers = drawn(dtype, tokens, columns)
    layer = Linear(columns, rows, bias)
    layer.weight, weight = drawn(dtype, rows, columns, part=3)
    expected = numbers @ weight.T
    if bias:
        layer.bias, offsets = drawn(dtype, rows, part=5)
        expected += offsets
    how = "with bias" if bias else "without bias"
    case = f"{dtype_name(dtype)}, [{tokens}, {columns}] x [{rows}, {columns}] {how}"
    return compared(PRODUCT, case, layer(x), expected, ROUNDING[dtype])


def parts_check(dtype: mx.Dtype, tokens: int, width: int) -> Check:
    """The last of FLUX.1's single-stream blocks: attention's columns, then four times as many of the feed-forward."""
    parts = drawn(dtype, tokens, width), drawn(dtype, tokens, 4 * width, part=5)
    layer = Linear(5 * width, width)
    layer.weight, weight = drawn(dtype, width, 5 * width, part=3)
    layer.bias, offsets = drawn(dtype, width, part=7)
    expected = np.concatenate([numbers for _, numbers in parts], axis=1) @ weight.T + offsets
    out = layer.product_of_parts(*(x for x, _ in parts)).sum()
    case = f"{dtype_name(dtype)}, [{tokens}, {width} + {4 * width}] x [{width}, {5 * width}] with bias"
    return compared(PRODUCT, case, out, expected, ROUNDING[dtype])
