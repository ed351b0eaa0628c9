"""Runs cases within limits of time and memory, and says which ended in another way than a reader may.

A reader gives what it read, or raises an error of this library's in one line. Case number n of a seed is the same on
every machine. `python -m tests.fuzz.runner COUNT SEED [KIND]` runs as many as one likes, in a process of its own that
is started again when it crashes or hangs.
"""

import contextlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType

from mlx_imagegen.errors import ImagegenError

CASE_SECONDS = 10  # of the processor: other programs' work is no fault of the case
WAITING_SECONDS = 60  # by the clock, for a pipe that nobody writes to
STUCK_SECONDS = 180  # of a process in which the alarms are not heard
MEMORY_BYTES = 6 * 2**30  # of addresses; MLX and its caches take 2
LINE_LENGTH = 400


class TooSlow(BaseException):
    pass


def run_case(kind: str, number: int, seed: int, folder: Path) -> str | None:
    """What is wrong with how the case ended; None if nothing."""
    from tests.fuzz.kinds import KINDS, clear

    clear(folder)
    read = KINDS[kind].make(folder, Random(f"{kind}:{seed}:{number}"))
    try:
        with _limited(), contextlib.redirect_stdout(sys.stderr):
            read()
    except ImagegenError as error:
        return _odd_line(str(error).replace(str(folder), "F"))
    except TooSlow:
        return f"not done after {CASE_SECONDS} s of the processor or {WAITING_SECONDS} s of waiting"
    except BaseException as error:  # PanicException of Rust's is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:150]!r} at {Path(last.filename).name}:{last.lineno}"
    return None


def _odd_line(line: str) -> str | None:
    if len(line) > LINE_LENGTH:
        return f"a message of {len(line)} characters: {line[:200]}"
    return None if line.isprintable() and line else f"a message with {line[:200]!a}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    clocks = {
        signal.SIGPROF: (signal.ITIMER_PROF, CASE_SECONDS),
        signal.SIGALRM: (signal.ITIMER_REAL, WAITING_SECONDS),
    }
    before = {number: signal.signal(number, ring) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


def serve() -> None:
    """Runs the cases that standard input names, and answers each with a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            kind, number, seed = json.loads(line)
            print(json.dumps(run_case(kind, number, seed, Path(folder) / "case")), flush=True)


def campaign(count: int, seed: int, only: str | None) -> int:
    from tests.fuzz.kinds import names

    kinds = [only] * count if only else names(count)
    failures, started, process = 0, time.monotonic(), _start()
    for number, kind in enumerate(kinds):
        process.stdin.write(json.dumps([kind, number, seed]) + "\n")
        process.stdin.flush()
        signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
        try:
            line = process.stdout.readline()
            fault = json.loads(line) if line else f"the process ended with code {process.wait()}"
        except TooSlow:
            fault = f"stuck for {STUCK_SECONDS} s"
            process.kill()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if process.poll() is not None or "stuck" in (fault or ""):
            process.wait()
            process = _start()
        if fault:
            failures += 1
            print(f"{kind} {number} seed {seed}: {fault}", flush=True)
    process.stdin.close()
    process.wait()
    print(f"{count} cases of seed {seed}: {failures} failures, {time.monotonic() - started:.0f} s")
    return failures


def _start() -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from tests.fuzz.runner import serve; serve()"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )


def _ring(number: int, frame: FrameType | None) -> None:
    raise TooSlow


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _ring)
    chosen = sys.argv[3] if len(sys.argv) > 3 else None
    sys.exit(bool(campaign(int(sys.argv[1]), int(sys.argv[2]), chosen)))
