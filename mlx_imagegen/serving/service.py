"""The parts together: requests are checked and queued, the worker draws, results are kept for a while.

In: a request's fields, from any thread. Out: its job. HTTP and MCP are thin layers over this.
Must not know: HTTP, MCP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ImagegenError
from .catalogue import Catalogue
from .fair_queue import FairQueue, QueueFullError
from .jobs import CANCELLED, Job, JobStore
from .requests import Limits, read_request
from .worker import Worker, log, summary


class BusyError(ImagegenError):
    """The queue is full."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {seconds} s.")
        self.seconds = seconds


class StoppingError(ImagegenError):
    """No new work is taken."""


@dataclass(frozen=True)
class Options:
    quant: str | None = None  # of models that are not packed, where a request names none
    max_queue: int = 32
    idle_seconds: float | None = 15 * 60.0  # None: the model stays
    log_prompts: bool = False
    limits: Limits = field(default_factory=Limits)


class Service:
    def __init__(self, catalogue: Catalogue, options: Options):
        self.catalogue = catalogue
        self.options = options
        self.store = JobStore()
        self.queue: FairQueue[Job] = FairQueue(options.max_queue)
        self.worker = Worker(self.queue, catalogue, options.quant, options.idle_seconds)

    def start(self, open_model: bool = True) -> None:
        """`open_model`: the server's own, now and not with the first request; raises what is wrong with it."""
        self.worker.open_first = open_model
        self.worker.start()
        self.worker.opened.wait()
        if self.worker.refused is not None:
            raise self.worker.refused

    def accept(self, fields: Mapping[str, Any], client: str, partial_images: int = 0, watched: bool = False) -> Job:
        """Takes time where pictures are sent: for a thread of its own."""
        self.check_room()
        request = read_request(fields, self.catalogue, self.options.limits, self.options.quant)
        job = Job(request, client, partial_images)
        if watched:
            job.watch()
        try:
            self.store.add(job)
            self.queue.put(client, job)
        except QueueFullError:
            job.move(CANCELLED)
            self.check_room()
            raise BusyError(len(self.queue), self.retry_after()) from None
        if self.options.log_prompts:
            log(f"job {job.id[:6]}: {job.prompt!a}")
        return job

    def check_room(self) -> None:
        """Raises where a request would be refused, before its body is read."""
        if self.queue.closed:
            raise StoppingError("this server is stopping; nothing new is drawn.")
        if len(self.queue) >= self.queue.limit:
            raise BusyError(len(self.queue), self.retry_after())

    def retry_after(self) -> int:
        """Seconds until the running job will be done, and with it a place free; a guess where it does not say."""
        current = self.worker.current
        return max(1, round((current.seconds_left if current else None) or 1))

    def cancel(self, job: Job) -> None:
        job.cancel_requested.set()
        if self.queue.remove(job.client, job):
            job.move(CANCELLED)
            log(summary(job))

    def describe(self, job: Job) -> dict[str, Any]:
        """With its position, where it waits: how many jobs come before it."""
        order = self.queue.order()
        return job.describe(order.index(job) + (self.worker.current is not None) if job in order else None)

    def stop(self, seconds: float) -> None:
        """Cancels all jobs, and waits up to `seconds` for the one that is being drawn."""
        for job in self.queue.close():
            job.move(CANCELLED)
        if current := self.worker.current:
            current.cancel_requested.set()
        self.worker.join(seconds)
        if current:
            current.move(CANCELLED)  # in the middle of a long step: its client is not kept waiting
