"""The one thread that owns the model: takes job after job, opens the model that each asks for, draws, reports.

MLX's arrays belong to the thread that made them, so that a model is opened, used and let go here alone.
In: a queue of jobs. Out: jobs that have moved on.
Must not know: HTTP, where jobs come from.
"""

import gc
import sys
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx

from .. import pipeline as pipelines
from ..errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    ImagegenError,
    InsufficientMemoryError,
    MissingFileError,
    OutputError,
    UnknownModelError,
)
from ..hub.download import Notify
from ..loading.transforms import Progress
from ..pipeline import Pipeline
from ..result import Result, StepEvent
from .catalogue import Catalogue, Entry
from .fair_queue import FairQueue
from .jobs import CANCELLED, DONE, DRAWING, PREPARING, Failure, Job, JobCancelledError
from .requests import Request

PREVIEW_SHARE = 0.1  # of the time, at most, that previews may take
SERVERS_FAULT = (CheckpointError, ConfigError, DownloadError, OutputError)
NOT_FOUND = (UnknownModelError, MissingFileError)
INTERNAL = "an error of this server, whose log says more; the same request may work again."


Loras = tuple[tuple[tuple[Path, float], ...], bool]  # files with their scales, and whether a part may fit
NO_LORAS: Loras = ((), False)


class WarmModel:
    """The model in memory, one at a time."""

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self.name: str | None = None
        self._key: tuple[str, str | None] | None = None
        self._loras: Loras = NO_LORAS

    def open(self, entry: Entry, quant: str | None, on_load: Progress) -> None:
        """Reads configs and headers; the weights come with the first picture."""
        self._take(pipelines.load(entry.source, quant=quant, on_load=on_load), entry, quant, NO_LORAS)

    def prepare(self, request: Request, notify: Notify, on_load: Progress) -> Pipeline:
        """The request's model with its LoRAs; the former one stays if the new one is refused, and else leaves first."""
        if self.pipeline is not None and self._key == (request.entry.source, request.quant):
            if self._loras != (request.loras, request.lora_partial):
                self.pipeline.set_lora(request.loras, request.lora_partial, notify)
                self._loras = request.loras, request.lora_partial
            return self.pipeline
        opened = pipelines.load(
            request.entry.source, quant=request.quant, lora=request.loras, lora_partial=request.lora_partial,
            on_load=on_load, on_download=notify,
        )  # fmt: skip
        opened.plans(opened.check(request.jobs))  # refused while the former model is still there
        self._take(opened, request.entry, request.quant, (request.loras, request.lora_partial))
        return opened

    def unload(self) -> None:
        self.pipeline = self.name = self._key = None
        gc.collect()
        mx.clear_cache()

    def _take(self, opened: Pipeline, entry: Entry, quant: str | None, loras: Loras) -> None:
        self.unload()
        self.pipeline, self.name, self._key, self._loras = opened, entry.name, (entry.source, quant), loras


class Worker(threading.Thread):
    def __init__(self, queue: FairQueue[Job], catalogue: Catalogue, quant: str | None, idle_seconds: float | None):
        super().__init__(name="mlx-imagegen worker", daemon=True)
        self.queue = queue
        self.catalogue = catalogue
        self.quant = quant
        self.idle_seconds = idle_seconds
        self.model = WarmModel()
        self.current: Job | None = None
        self._drawing: Drawing | None = None
        self.open_first = True  # the server's own model, before any job
        self.opened = threading.Event()  # it is open, or was refused
        self.refused: BaseException | None = None

    def run(self) -> None:
        try:
            if self.open_first:
                default = self.catalogue.default
                self.model.open(default, None if default.is_packed else self.quant, self._on_load)
        except BaseException as error:
            self.refused = error
            return
        finally:
            self.opened.set()
        while not self.queue.closed:
            job = self.queue.take(self.idle_seconds if self.model.pipeline else None)
            if job is not None:
                self._run(job)
            elif self.model.pipeline and not self.queue.closed:
                log(f"idle: {self.model.name} leaves memory; the next request reads it again")
                self.model.unload()

    def _run(self, job: Job) -> None:
        self.current = job
        try:
            self._draw(job)
        except JobCancelledError:
            job.move(CANCELLED)
        except ImagegenError as error:
            job.fail(failure_of(error))
        except Exception as error:
            log_error(f"job {job.id}", error)
            self.model.unload()  # whatever state it was left in
            job.fail(Failure(INTERNAL, "server_error", 500))
        else:
            job.move(DONE)
        finally:
            self.current = self._drawing = None
        log(summary(job))

    def _draw(self, job: Job) -> None:
        drawing = Drawing(job)
        drawing.check_cancelled()
        job.move(PREPARING)
        self._drawing = drawing
        opened = self.model.prepare(job.request, job.notes.append, self._on_load)
        jobs = opened.check(job.request.jobs)
        drawing.opened = opened
        with closing(cast("Generator[Result]", opened.stream(jobs, drawing.on_step))) as results:
            for result in results:
                job.results.append(self._named(result, job.request))
                job.notes += [note for note in result.report.notes if note not in job.notes]
                drawing.check_cancelled()

    def _on_load(self, component: str, done: int, total: int) -> None:
        """A model outlives the job that it was opened for; what it reads is the present job's."""
        if self._drawing is not None:
            self._drawing.on_load(component, done, total)

    def _named(self, result: Result, request: Request) -> Result:
        """With the names that clients use in its record, not this machine's folders."""
        loras = [[self.catalogue.lora_name(file), scale] for file, scale in result.record.get("lora", [])]
        record = result.record | {"model": request.entry.name} | ({"lora": loras} if loras else {})
        return replace(result, record=record)


class Drawing:
    """What the pipeline reports of one job."""

    def __init__(self, job: Job):
        self.job = job
        self.opened: Pipeline | None = None
        self.preview_seconds = 0.0
        self.preview_ended = 0.0

    def check_cancelled(self) -> None:
        if self.job.cancel_requested.is_set():
            raise JobCancelledError

    def on_load(self, component: str, done: int, total: int) -> None:
        self.check_cancelled()
        progress = self.job.progress
        progress.loaded_bytes, progress.load_bytes = done, total
        self.job.changed()

    def on_step(self, event: StepEvent) -> None:
        self.check_cancelled()
        job, progress = self.job, self.job.progress
        progress.picture, progress.step, progress.steps = event.picture + 1, event.step, event.steps
        steps_left = event.steps - event.step + (event.pictures - 1 - event.picture) * event.steps
        progress.ends_at = time.monotonic() + steps_left * event.seconds
        memory = self.opened.residency if self.opened else None
        if event.step < event.steps and memory and (memory.resident or memory.decode_at_once):
            self._show(event)  # the decoder has room next to the denoiser
        job.move(DRAWING)

    def _show(self, event: StepEvent) -> None:
        """Unfinished pictures: at the steps asked for, and for those who watch, as often as it costs little."""
        asked = is_partial(event.step, event.steps, self.job.partial_images)
        started = time.monotonic()
        cheap = (started - self.preview_ended) * PREVIEW_SHARE >= self.preview_seconds
        if not asked and not (self.job.watched and cheap):
            return
        self.job.preview = image = event.preview()
        self.job.partials += [image] if asked else []
        self.preview_ended = time.monotonic()
        self.preview_seconds = self.preview_ended - started


def is_partial(step: int, steps: int, count: int) -> bool:
    """Whether one of `count` unfinished pictures, evenly spread over the steps, falls on this one."""
    return count > 0 and step * (count + 1) // steps > (step - 1) * (count + 1) // steps


def failure_of(error: ImagegenError) -> Failure:
    message = str(error)
    if isinstance(error, InsufficientMemoryError):
        return Failure(message, "insufficient_memory", 400)
    if isinstance(error, NOT_FOUND):
        return Failure(message, "not_found", 404)
    if isinstance(error, SERVERS_FAULT):
        return Failure(message, "server_error", 500)
    return Failure(message, "invalid_request_error", 400)


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def log_error(where: str, error: Exception) -> None:
    """Without its message, which may hold a prompt."""
    log(f"{where}: {type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}")


def summary(job: Job) -> str:
    """One line for the log, without the prompt."""
    begun = job.started or job.ended or job.created
    seconds, waited = (job.ended or begun) - begun, begun - job.created
    made = f"{len(job.results)} of {job.pictures} pictures"
    why = f": {job.failure.kind}" if job.failure else ""
    return (
        f"job {job.id[:6]} of {job.client}: {job.model}, {made}, {job.state}{why} after {seconds:.2f} s, "
        f"having waited {waited:.2f} s"
    )
