"""The same clock for all: steps one after the other, the first for warming up, and what they took as a line of JSON.

Imported by each library's runner, in that library's environment: nothing but the standard library here.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

BUDGET_SECONDS = 60.0  # of measured steps; a first step that takes longer than SLOW is counted instead of repeated
SLOW_SECONDS = 12.0


def measured(step: Callable[[int], Any], steps: int, rounds: int = 3) -> tuple[list[float], Any]:
    """Seconds of each step, which must be finished when it returns; and what the last one of the first round gave."""
    seconds, last, spent = [], None, 0.0
    for number in range(1 + rounds * steps):
        started = time.perf_counter()
        out = step(number % steps)
        took = time.perf_counter() - started
        if number == steps - 1 or last is None:
            last = out
        if number > 0 or took > SLOW_SECONDS:
            seconds.append(took)
            spent += took
        if spent > BUDGET_SECONDS and number >= steps - 1:
            break
    return seconds, last


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def say(**results: Any) -> None:
    print(json.dumps(results | {"process_peak_bytes": peak_bytes()}), flush=True)
