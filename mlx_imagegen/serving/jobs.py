"""One client's request on its way: what state it is in, how far it is, and what came of it; and all that are kept.

A job belongs to two sides: the worker's thread moves it on, coroutines of any loop wait for its next change and read.
In: a `Request` and the worker's reports. Out: a description for clients, and events.
Must not know: HTTP, how pictures are made.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..result import Result
from .requests import Request

QUEUED, PREPARING, DRAWING, DONE, FAILED, CANCELLED = "queued", "preparing", "drawing", "done", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)
BYTES_PER_PIXEL = 3
KEEP_SECONDS = 60 * 60
KEEP_BYTES = 128 * 10**6  # of pictures, unpacked: forty of 1024x1024
KEEP_JOBS = 1000
WATCHED_SECONDS = 15.0  # a client that asked for a preview will probably ask again


class JobCancelledError(Exception):
    """Raised in the worker, between two steps, for a job that nobody wants any more."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed, for the client."""

    message: str
    kind: str
    status: int  # as HTTP has it

    def describe(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.kind}


@dataclass
class Progress:
    picture: int = 0  # from 1
    step: int = 0  # of this picture
    steps: int = 0
    loaded_bytes: int = 0
    load_bytes: int = 0
    ends_at: float | None = None  # expected, by time.monotonic()


@dataclass(eq=False)
class Job:
    request: Request
    client: str
    partial_images: int = 0  # unfinished pictures that were asked for, of each picture
    model: str = field(init=False)
    prompt: str = field(init=False)
    pictures: int = field(init=False)
    size: tuple[int, int] = field(init=False)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # not to be guessed: it opens the results
    created: float = field(default_factory=time.time)
    state: str = QUEUED
    progress: Progress = field(default_factory=Progress)
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: Failure | None = None
    partials: list[Image.Image] = field(default_factory=list)  # the unfinished pictures that were asked for
    preview: Image.Image | None = None  # the latest unfinished picture, for those who watch
    started: float | None = None
    ended: float | None = None
    cancel_requested: threading.Event = field(default_factory=threading.Event)
    watched_until: float = 0.0  # somebody looks at previews
    _waiting: set["tuple[asyncio.AbstractEventLoop, asyncio.Event]"] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        first = self.request.jobs[0]
        self.model, self.prompt, self.pictures = self.request.entry.name, first.prompt.text, len(self.request.jobs)
        self.size = first.settings.width, first.settings.height

    # For the worker.

    def changed(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def move(self, state: str) -> None:
        """To another state; a finished job stays what it is."""
        with self._lock:
            if self.state in FINISHED:
                return
            self.started = time.time() if state == PREPARING else self.started
            self.ended = time.time() if state in FINISHED else None
            self.state = state
            if state in FINISHED:  # what is kept of it is the results
                self.request.jobs.clear()
                self.preview = None
        self.changed()

    def fail(self, failure: Failure) -> None:
        self.failure = failure
        self.move(FAILED)

    # For those who wait.

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def watched(self) -> bool:
        return time.monotonic() < self.watched_until

    def watch(self) -> None:
        self.watched_until = time.monotonic() + WATCHED_SECONDS

    @property
    def seconds_left(self) -> float | None:
        ends_at = self.progress.ends_at
        return None if ends_at is None or self.finished else max(0.0, ends_at - time.monotonic())

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1, in steps of all pictures."""
        progress = self.progress
        if self.state == DONE:
            return 1.0
        if not progress.steps:
            return 0.0
        return min(1.0, (progress.picture - 1 + progress.step / progress.steps) / self.pictures)

    @property
    def nbytes(self) -> int:
        images = [*(each for result in self.results for each in (result.image, *result.layers)), *self.partials]
        return sum(image.width * image.height * BYTES_PER_PIXEL for image in images)

    async def changes(self, heartbeat: float) -> AsyncIterator[bool]:
        """True at once and after each change until the job is finished, at the latest after `heartbeat` seconds: then
        False. Changes that come faster than they are read are one."""
        event = asyncio.Event()
        entry = asyncio.get_running_loop(), event
        with self._lock:
            self._waiting.add(entry)
        try:
            changed = True
            while True:
                finished = self.finished  # before the yield, so that the last state is seen
                yield changed
                if finished:
                    return
                try:
                    await asyncio.wait_for(event.wait(), heartbeat)
                    changed = True
                except TimeoutError:
                    changed = False
                event.clear()
        finally:
            with self._lock:
                self._waiting.discard(entry)

    async def wait(self) -> None:
        async for _ in self.changes(heartbeat=60):
            pass

    def describe(self, position: int | None = None) -> dict[str, Any]:
        """For clients, without pictures and without the prompt."""
        progress = self.progress
        loading = {"loaded_bytes": progress.loaded_bytes, "load_bytes": progress.load_bytes}
        left = self.seconds_left
        return {
            "id": self.id,
            "state": self.state,
            "model": self.model,
            "width": self.size[0],
            "height": self.size[1],
            "pictures": self.pictures,
            "picture": progress.picture,
            "step": progress.step,
            "steps": progress.steps,
            "progress": round(self.fraction, 4),
            "seconds_left": None if left is None else round(left, 2),
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "notes": self.notes,
            **({"position": position} if position is not None else {}),
            **(loading if self.state == PREPARING else {}),
            **({"error": self.failure.describe()} if self.failure else {}),
        }


class JobStore:
    """Jobs by id: those that wait or run; those that are finished, with their results, until they are old or results
    take too much memory, the oldest first."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES, keep_jobs: int = KEEP_JOBS):
        self.keep_seconds = keep_seconds
        self.keep_bytes = keep_bytes
        self.keep_jobs = keep_jobs
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job
        self.expire()

    def get(self, id: str) -> Job | None:
        self.expire()
        return self._jobs.get(id)

    def all(self) -> list[Job]:
        """The newest first."""
        self.expire()
        with self._lock:
            return list(reversed(self._jobs.values()))

    def expire(self) -> None:
        """The latest finished job stays, however large its pictures are: its client has yet to fetch them."""
        with self._lock:
            finished = [job for job in self._jobs.values() if job.finished]
            nbytes, count = sum(job.nbytes for job in finished), len(finished)
            oldest = time.time() - self.keep_seconds
            for job in sorted(finished[:-1], key=lambda job: job.ended or 0):
                if nbytes <= self.keep_bytes and count <= self.keep_jobs and (job.ended or 0) >= oldest:
                    break
                del self._jobs[job.id]
                nbytes, count = nbytes - job.nbytes, count - 1
