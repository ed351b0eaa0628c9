"""`Check`: one operation by MLX against an independent computation, and what all kinds of checks share.

Both get the same inputs, rounded to MLX's dtype first. The independent computation is NumPy's, on the CPU, in float32
or float64. The error is that of the worst row, relative to the row. A wrong tile, a lost mask or a kernel that stops
after some rows is off by at least a tenth; rounding explains a hundredth.
Must not know: which operations there are.
"""

import functools
import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..precision import emulates_bfloat16, on_gpu

# What rounding explains where the arithmetic inside is float32. TF32 is off by 3e-4 of a product, and is found.
ROUNDING = {mx.bfloat16: 5e-3, mx.float16: 1e-3, mx.float32: 1e-4}
EXACT = 0.0  # of what only moves numbers


@dataclass(frozen=True)
class Check:
    operation: str
    case: str  # its dtype, its shape, what is special
    error: float  # of the worst row, as a part of that row; NaN where there is no result
    limit: float

    @property
    def right(self) -> bool:
        return self.error <= self.limit  # a NaN is not

    def __str__(self) -> str:
        return f"{self.operation}, {self.case}: off by {self.error:.2g}, at most {self.limit:.2g}"


def compared(operation: str, case: str, out: mx.array, expected: np.ndarray, limit: float) -> Check:
    """Rows are what lies along the last axis."""
    return Check(operation, case, worst_row(as_numpy(out), expected), limit)


def worst_row(out: np.ndarray, expected: np.ndarray) -> float:
    if out.shape != expected.shape:
        return math.nan
    difference = np.linalg.norm(out - expected, axis=-1)
    worst = difference / np.maximum(np.linalg.norm(expected, axis=-1), 1e-12)
    return float(worst.max()) if np.isfinite(worst).all() else math.nan


def as_numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


def drawn(dtype: mx.Dtype, *shape: int, part: int = 0) -> tuple[mx.array, np.ndarray]:
    """Unit normals for MLX, and the same numbers for NumPy; others for another `part`."""
    x = mx.array(np.resize(normals()[part * 1_234_567 :], shape)).astype(dtype)
    return x, as_numpy(x)


@functools.cache
def normals() -> np.ndarray:
    """Drawn once. Larger arrays repeat them; an odd count never begins two rows alike."""
    return np.random.default_rng(0).standard_normal(2**24 + 1, np.float32)


def dtypes() -> tuple[mx.Dtype, ...]:
    """Those that a run here may compute in."""
    return (mx.bfloat16, mx.float16, mx.float32) if emulates_bfloat16() else (mx.bfloat16, mx.float32)


def real(size: int, small: int) -> int:
    """`size` on a GPU. The CPU backend has one kernel for all sizes, and a slow one: there `small`."""
    return size if on_gpu() else small
