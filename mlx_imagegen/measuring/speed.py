"""How fast this machine multiplies and copies, and what its chip should reach."""

import time
from collections.abc import Callable

import mlx.core as mx

from ..planning.chips import CHIPS, Chip, chip_of
from ..precision import compute_dtype, on_gpu

FASTEST_MATMUL = (2048, 3072, 3072)  # what the speed of products is measured on: FLUX.1's and Qwen-Image's width
COPY_BYTES = 256 * 2**20
LEAST_SHARE = 0.5  # of what the table has; the smaller variants of a chip have two thirds of its cores


def measured_chip() -> Chip:
    """How fast this machine multiplies and copies, as a `Chip`: the best of three, at the working precision."""
    tokens, rows, columns = FASTEST_MATMUL
    tokens //= 1 if on_gpu() else 8
    x, weight = (mx.random.normal((count, columns)).astype(compute_dtype()) for count in (tokens, rows))
    many = mx.zeros((COPY_BYTES // 4,))
    mx.eval(x, weight, many)
    product = min(_seconds(lambda: x @ weight.T) for _ in range(3))
    copy = min(_seconds(lambda: many + 1) for _ in range(3))
    return Chip(2 * COPY_BYTES / copy / 1e9, 2 * tokens * rows * columns / product / 1e12)


def _seconds(work: Callable[[], mx.array]) -> float:
    started = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - started


def slowness(measured: Chip, device: str) -> list[str]:
    """Warnings where this machine reaches less than half of what its chip can."""
    name = chip_of(device)
    if name is None:
        return []
    best = CHIPS[name]
    figures = [
        ("multiplies", "TFLOP/s", measured.teraflops, best.teraflops),
        ("copies", "GB/s", measured.bandwidth_gb_per_second, best.bandwidth_gb_per_second),
    ]
    return [
        f"it {verb} with {here:.3g} {unit}, less than half of an {name}'s {there:g}: is it in low-power mode, hot, or "
        "busy with another program?"
        for verb, unit, here, there in figures
        if here < LEAST_SHARE * there
    ]
