"""Ends all ranks together: if a rank fails, is interrupted or dies, the others end within seconds.

MLX's collectives wait forever for a rank that has died, and no Python runs in the thread that waits. So one thread
listens to each link, and one more sends heartbeats, counts silence and handles signals. It interrupts the main thread,
which then raises the reason. If the main thread is still in a collective after `GRACE_SECONDS`, the reason is printed
and the process ends.
In: the links. Out: all other messages; the reason for the end. Must not know: what is drawn.
"""

import atexit
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from ..errors import DistributedError
from .messages import Link, Message

SILENCE_SECONDS = 20.0  # without a heartbeat: the host has gone, or the network
BEAT_SECONDS = 1.0
GRACE_SECONDS = 3.0
INTERRUPTED = 130


class Watch:
    """Create it in the main thread, which is the thread that it interrupts."""

    def __init__(self, links: Mapping[int, Link], name: Callable[[int], str], rank: int, silence: float):
        self.inboxes: dict[int, queue.SimpleQueue[Message]] = {rank: queue.SimpleQueue() for rank in links}
        self.failure: str | None = None
        self.lost: set[int] = set()  # ranks without which the others go on
        self.on_loss: Callable[[int], bool] = lambda rank: False  # whether they do
        self._links, self._name, self._rank, self._silence = links, name, rank, silence
        self._gone: set[int] = set()  # ranks that have left in order
        self._ended = threading.Event()
        self._deadline = float("inf")
        self.code = 2  # what the process ends with
        self._failing = threading.Lock()
        self.failed = threading.Event()
        self.interrupted = False
        self._main = threading.main_thread().ident or 0

    def start(self) -> None:
        self._signals, written = socket.socketpair()
        written.setblocking(False)
        self._written = written  # kept open
        self._former_wakeup = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        # `_see_signals` answers SIGTERM; the main thread is interrupted once, for whatever reason.
        self._former = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, self._interrupt)
        for rank in self._links:
            threading.Thread(target=self._listen, args=(rank,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._see_signals, daemon=True).start()

    def stop(self) -> None:
        """Ends the watch; the work is done."""
        self._ended.set()
        signal.set_wakeup_fd(self._former_wakeup)
        for number, handler in self._former:
            signal.signal(number, handler)

    def end(self) -> None:
        """Gives this failing process a few seconds to print why, also on a busy machine; even then MLX may wait for its
        peers."""
        self._ended.set()
        signal.set_wakeup_fd(self._former_wakeup)
        for number, _ in self._former:
            signal.signal(number, signal.SIG_IGN)
        signal.alarm(int(2 * GRACE_SECONDS))
        atexit.register(self._leave)  # before the interpreter shuts down, which MLX may delay

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.code)

    def fail(self, reason: str, code: int = 2) -> None:
        """Ends all ranks, from any thread; the first reason counts."""
        with self._failing:
            if self.failure is not None or self._ended.is_set():
                return
            self.failure, self.code = reason, code
            self._deadline = time.monotonic() + GRACE_SECONDS
        self.broadcast({"kind": "failed", "reason": reason})
        self.failed.set()
        signal.alarm(int(2 * GRACE_SECONDS))  # then the system ends the process, if nothing else has
        signal.pthread_kill(self._main, signal.SIGINT)

    def _interrupt(self, *_: object) -> None:
        """The main thread's handler: raises the reason, once, wherever that thread is."""
        if self.interrupted:
            return
        self.interrupted = True
        if self.failure is None or self.code == INTERRUPTED:
            raise KeyboardInterrupt
        raise DistributedError(self.failure)

    def broadcast(self, message: Message) -> None:
        """Sends to every connected rank that has not gone."""
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.send(message)

    def _listen(self, rank: int) -> None:
        link = self._links[rank]
        while True:
            try:
                message = link.receive()
            except (OSError, EOFError, ValueError):
                return self._on_end(rank, "has ended without a word: it was killed, or its host or the network is gone")
            kind = message.get("kind")
            if kind == "failed":
                self.fail(str(message["reason"]))
            elif kind == "left":
                self._gone.add(rank)
                self.inboxes[rank].put(message)
            elif kind == "lost":
                self.lost.add(int(message["rank"]))
            else:
                self.inboxes[rank].put(message)

    def _on_end(self, rank: int, how: str) -> None:
        if rank in self._gone or rank in self.lost or self._ended.is_set():
            return
        if rank != 0 and self.on_loss(rank):
            self.lost.add(rank)
            self.inboxes[rank].put({"kind": "lost"})
            self.broadcast({"kind": "lost", "rank": rank})
            return
        self.fail(f"{self._name(rank)} {how}; what the others were doing needs it.")

    def _beat(self) -> None:
        """Sends heartbeats, and checks those of the others."""
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now > self._deadline:
                self._exit()
            for rank, link in self._links.items():
                with contextlib.suppress(OSError):
                    link.beat()
                if now - link.heard > self._silence:
                    self._on_end(rank, f"has not been heard of for {self._silence:.0f} s")

    def _see_signals(self) -> None:
        while not self._ended.is_set():
            for number in self._signals.recv(64):
                self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        """SIGTERM is the launcher's way to end all ranks when it sees that one has died."""
        if number == signal.SIGTERM:
            for _ in range(20):
                if self.lost or self.failure:
                    return
                time.sleep(BEAT_SECONDS / 10)
            self.fail(f"{self._name(self._rank)} was ended from outside.")
        elif number == signal.SIGINT:
            self.fail(f"{self._name(self._rank)} was interrupted.", INTERRUPTED)

    def _exit(self) -> None:
        """Ends the process without the main thread, which waits in a collective."""
        print(f"mlx-imagegen: {self.failure}", file=sys.stderr, flush=True)
        os._exit(self.code)
