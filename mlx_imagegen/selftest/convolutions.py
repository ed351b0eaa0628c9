"""The autoencoders' 3x3 convolutions, cut into strips: Metal computes the wide ones by Winograd's transform."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..layers.conv import KERNEL, Conv2d
from ..layers.strips import Cut, Strips
from .check import Check, compared, drawn, real

CONVOLUTION = "convolution"
# Winograd's transform makes rounding some ten times larger; with TF32 it would be 6e-3.
LIMIT = 1e-3


class Case(NamedTuple):
    inputs: int
    outputs: int
    side: int
    strip: int  # rows of the output at a time
    upsample: bool = False
    downsample: bool = False


def cases() -> list[Case]:
    wide, half, side = real(512, 64), real(256, 48), real(64, 13)
    return [
        Case(wide, wide, side, 12),
        Case(wide, wide, side, 5),
        Case(wide, half, side + 1, 6),
        Case(wide, wide, side // 2, 7, upsample=True),
        Case(half, half, 2 * (side // 2), 4, downsample=True),
        Case(16, wide, side, 12),  # at the latents' end
        Case(real(128, 48), 3, side, 12),  # at the picture's end
        Case(real(384, 96), real(192, 48), side, 12),  # Qwen-Image's
    ]


def convolution_checks() -> Iterator[Check]:
    for case in cases():
        yield convolution_check(case)


def convolution_check(case: Case) -> Check:
    x, numbers = drawn(mx.float32, 1, case.side, case.side, case.inputs)
    layer = Conv2d(case.inputs, case.outputs, upsample=case.upsample, downsample=case.downsample)
    layer.weight, weight = drawn(mx.float32, case.outputs, KERNEL, KERNEL, case.inputs, part=3)
    layer.bias, bias = drawn(mx.float32, case.outputs, part=5)
    out = layer(Strips(Cut(case.strip), [x])).joined()
    kind = " after doubling" if case.upsample else " with stride 2" if case.downsample else ""
    shape = f"[{case.side}, {case.side}, {case.inputs}] -> {case.outputs}"
    name = f"3x3{kind}, float32, {shape} in strips of {case.strip} rows"
    return compared(CONVOLUTION, name, out, convolved(numbers, weight, case) + bias, LIMIT)


def convolved(x: np.ndarray, weight: np.ndarray, case: Case) -> np.ndarray:
    """One product for each of the nine places of the kernel."""
    if case.upsample:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    edge, stride = ((0, 1), 2) if case.downsample else ((1, 1), 1)
    x = np.pad(x, [(0, 0), edge, edge, (0, 0)])
    height, width = ((size - KERNEL) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((1, height, width, weight.shape[0]), np.float32)
    for row in range(KERNEL):
        for column in range(KERNEL):
            window = x[:, row : row + stride * height : stride, column : column + stride * width : stride]
            out += window[:, :height, :width] @ weight[:, row, column].T
    return out
