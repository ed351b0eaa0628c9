"""Times variants in turns in one run, and measures what each adds to memory; for the scripts here."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call. Nothing is warmed up here."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            mx.eval(way())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> str:
    return f"median {statistics.median(values):6.3f} s   min {min(values):6.3f}   max {max(values):6.3f}"


def added_bytes(way: Callable[[], Any]) -> int:
    """What a call takes on top of what lies there before it."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(way())
    return mx.get_peak_memory() - before
