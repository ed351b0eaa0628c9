"""The ranks that MLX's launcher started: their names, messages between them, and sums over them.

Each rank has a TCP connection to rank 0 for messages. Arrays go through MLX's collectives, which are connected when
they are first needed. As a context manager, a `Group` ties the ranks together: what ends one ends all (watch.py).
In: a `Launch`. Out: a `Group`. Must not know: models, pictures.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import mlx.core as mx

from ..errors import DistributedError, ImagegenError, described
from ..launched import Launch
from .connections import JOIN_SECONDS, connect
from .messages import Message
from .watch import GRACE_SECONDS, INTERRUPTED, SILENCE_SECONDS, Watch

LINK_BYTES, LINK_TRIES = 1 << 21, 3  # 50 Mbit in all: half a second over a slow Wi-Fi of 0.1 Gb/s
RDMA_SPEED = 80.0  # Gb/s: Thunderbolt 5's
# Ends the process that started it, unless its standard input is closed in time. MLX connects without letting any other
# thread run.
ALARM = """
import os, select, sys
if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[3], file=sys.stderr, flush=True)
    os.kill(int(sys.argv[2]), 9)
"""


class Group:
    """Enter and leave it in the main thread."""

    def __init__(self, launch: Launch, silence: float = SILENCE_SECONDS):
        self.rank, self.size = launch.rank, launch.size
        self._launch, self._silence = launch, silence
        self._arrays: Any = None  # MLX's group

    def __enter__(self) -> Self:
        self._links, self.hosts = connect(self._launch)
        self._watch = Watch(self._links, self.name, self.rank, self._silence)
        self._watch.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raises the reason why all ranks end, if it comes from another rank."""
        if error is None:
            self._watch.broadcast({"kind": "left"})
            self._watch.stop()
            return
        reason = self._reason_of(error)
        self._watch.end()
        if reason is not None:
            raise DistributedError(reason) from error

    def _reason_of(self, error: BaseException) -> str | None:
        """Why all ranks end; None if the error itself says it."""
        watch = self._watch
        watch.interrupted = True  # the main thread is ending
        if isinstance(error, KeyboardInterrupt):
            watch.fail(f"{self.name()} was interrupted.", INTERRUPTED)
            return None
        if isinstance(error, RuntimeError | OSError) and not isinstance(error, ImagegenError):
            watch.failed.wait(
                GRACE_SECONDS
            )  # a collective or message fails before the news of the rank that has died is here
        if watch.failure is None:
            said = described(error)
            watch.fail(said if isinstance(error, DistributedError) else f"{self.name()}: {said}")
            return None
        return None if isinstance(error, DistributedError) else watch.failure

    def name(self, rank: int | None = None) -> str:
        rank = self.rank if rank is None else rank
        return f"rank {rank} ({self.hosts[rank]})"

    @contextmanager
    def going_on_without_lost_ranks(self) -> Iterator[None]:
        """On rank 0: another rank that dies inside ends no other, and its last message is of the kind "lost"."""
        self._watch.on_loss = lambda rank: True
        try:
            yield
        finally:
            self._watch.on_loss = lambda rank: False

    def fail(self, reason: str) -> None:
        """Ends all ranks, from any thread."""
        self._watch.fail(f"{self.name()}: {reason}")

    # Messages: JSON values, NumPy arrays and bytes.

    def send(self, message: Message, rank: int = 0) -> None:
        """To rank 0, or from rank 0 to any rank; OSError if that rank has gone."""
        self._links[rank].send(message)

    def receive(self, rank: int = 0) -> Message:
        """The next message of rank 0, or on it of any other; the last is of the kind "left", or "lost"."""
        return self._watch.inboxes[rank].get()

    def gather(self, message: Message) -> list[Message]:
        """Every rank's message, by rank, on rank 0; an empty list on the others."""
        if self.rank:
            self.send(message)
            return []
        return [message, *(self.receive(rank) for rank in range(1, self.size))]

    def share(self, message: Message | None = None) -> Message:
        """Rank 0's message, on every rank."""
        if self.rank == 0 and message is not None:
            self._watch.broadcast(message)
            return message
        return self.receive()

    def exchange(self, message: Message) -> list[Message]:
        """Every rank's message, by rank, on every rank."""
        gathered = self.gather(message)
        return list(self.share({"kind": "gathered", "of": gathered} if self.rank == 0 else None)["of"])

    def link_speed(self) -> float:
        """Of the slowest link between rank 0 and another, in Gb/s, measured; all ranks call it, and all have it. RDMA
        is no TCP connection, and goes over one kind of cable alone."""
        if self._launch.backend == "jaccl":
            return RDMA_SPEED
        if self.rank:
            for _ in range(LINK_TRIES):
                self.receive()
                self.send({"kind": "answer"})
            return float(self.share()["speed"])
        slowest = min(self._speed_to(rank) for rank in range(1, self.size))
        return float(self.share({"kind": "link", "speed": slowest})["speed"])

    def _speed_to(self, rank: int) -> float:
        seconds = []
        for _ in range(LINK_TRIES):
            started = time.perf_counter()
            self.send({"kind": "link", "load": bytes(LINK_BYTES)}, rank)
            self.receive(rank)
            seconds.append(time.perf_counter() - started)
        return LINK_BYTES * 8 / min(seconds) / 1e9

    # Arrays. These block until all ranks have called them. What comes out is lazy, and an array of a collective that
    # failed may hold anything where it is not read by mx.eval: evaluate it before it is used or kept.

    def start_collectives(self) -> None:
        """Connects the ranks by MLX's own backend; all of them call it."""
        self.share({"kind": "start"} if self.rank == 0 else None)
        late = (
            f"{self._launch.backend} has not connected {self.name()} with all others within {JOIN_SECONDS:.0f} s; see "
            "that all hosts reach each other by the launcher's addresses."
        )
        with _alarm(JOIN_SECONDS, late):
            self._arrays = mx.distributed.init(strict=True, backend=self._launch.backend)

    def all_sum(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x, group=self._arrays)

    def all_gather(self, x: mx.array) -> mx.array:
        """[n, ...] of each rank, one after the other: [size * n, ...]"""
        return mx.distributed.all_gather(x, group=self._arrays)


@contextmanager
def _alarm(seconds: float, line: str) -> Iterator[None]:
    arguments = [sys.executable, "-c", ALARM, str(seconds), str(os.getpid()), f"mlx-imagegen: {line}"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE):  # its input is closed when this is left
        yield
