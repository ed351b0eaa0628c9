"""The clock that all libraries share: times steps one after the other, the first as a warm-up, and prints JSON.

Imported by each library's runner, in that library's environment, so it uses only the standard library.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BUDGET_SECONDS = 10.0  # of measured steps; a first step that takes longer than SLOW is counted instead of repeated
SLOW_SECONDS = 5.0
BEGUN = "PEERS_BEGUN"  # an environment variable: when the process was started, in seconds since the epoch


@dataclass(frozen=True)
class Steps:
    """Each step by two clocks: the wall's, and the processor's over all threads, which a busy machine changes least."""

    wall_seconds: list[float]
    processor_seconds: list[float]
    first_seconds: list[float]  # from the start of the process to the end of its first step, imports and all


def measured(step: Callable[[int], Any], steps: int, rounds: int) -> tuple[Steps, Any]:
    """Every round goes through all steps; each must be finished when it returns. Also what the last step gave."""
    times, last = Steps([], [], []), None
    for number in range(1 + rounds * steps):
        index = (number - 1) % steps  # the first one warms up, and is the last of the steps
        wall, processor = time.perf_counter(), time.process_time()
        out = step(index)
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        if number == 0:
            times.first_seconds.append(time.time() - float(os.environ[BEGUN]))
        last = out if index == steps - 1 else last
        if number > 0 or processor > SLOW_SECONDS:
            times.wall_seconds.append(wall)
            times.processor_seconds.append(processor)
        if sum(times.processor_seconds) > BUDGET_SECONDS:
            break
    return times, last


def peak_bytes() -> int:
    if sys.platform == "linux":  # where ru_maxrss begins with what the parent held
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def say(steps: Steps, **results: Any) -> None:
    print(json.dumps(asdict(steps) | results | {"process_peak_bytes": peak_bytes()}), flush=True)
