"""`generate` on several ranks that MLX's launcher started: rank 0 reads the request and writes what all have drawn.

In: the command line, the same on every rank. Out: the pictures and lines of a single process, from rank 0 alone.
"""

import argparse
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..distributed.agreement import check_same
from ..distributed.branches import BranchExchange
from ..distributed.group import Group
from ..distributed.layers import share_layers
from ..distributed.lockstep import Shared, draw_in_lockstep
from ..distributed.messages import Message
from ..distributed.modes import AUTO, Mode, choose
from ..distributed.pictures import by_residency, draw_pictures, gone
from ..distributed.requests import packed, unpacked, with_seeds
from ..errors import RequestError
from ..hub.record import revision_of
from ..image import encoded_picture, write_bytes
from ..launched import Launch
from ..machine import memory_limit
from ..pipeline import Pipeline, load_on_hosts
from ..planning.fitting import residency
from ..planning.hosts import LAYERS, PICTURES, USUAL_LINK
from ..request.job import Job
from ..result import Result, StepEvent
from .output_paths import existing, output_paths, skipped, step_path, what_to_save
from .progress import Progress
from .recorded_model import read_record_and_requests, revision_notes

# After a rank has died, the launcher waits for the others' end and does not read what they print: a pipe holds so much.
UNREAD_BYTES = 8192


def run_on_ranks(args: argparse.Namespace, launch: Launch) -> None:
    with Group(launch) as group, Progress(args.quiet or group.rank > 0) as progress:
        progress.bars |= not progress.quiet and "COLUMNS" in os.environ  # the launcher's own terminal
        with tempfile.TemporaryDirectory(prefix="mlx_imagegen_request_") as folder:
            record, opening, requests = _shared_requests(group, args, Path(folder))
            memories = [each["memory"] for each in group.exchange({"memory": memory_limit().most_bytes})]
            sharing = memories if args.parallel in (None, AUTO, LAYERS) else ()
            opened = load_on_hosts(sharing, **opening, on_load=progress.loading, on_download=progress.say)
            jobs = [job for request in requests for job in opened.jobs(**request)]
        if any(job.upsampler or job.lacks_words for job in jobs):
            raise RequestError(
                "prompts are neither upsampled nor found on several ranks; write the caption first, on one host."
            )
        check_same(group, opened, jobs)
        if record:
            here = revision_of(opened.folder)
            progress.note(*revision_notes(args.replay, record, opened.model.requested_as, here))
        paths, wanted, mode = _shared_plan(group, args, opened, jobs, memories, progress)
        if wanted:
            jobs = [jobs[index] for index in wanted]
            _draw(group, mode, _Pictures(group, opened, jobs, args, [paths[index] for index in wanted], progress))


def _shared_requests(
    group: Group, args: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """A picture's record, on rank 0 alone; how to open the model, and the requests: rank 0's, on every rank."""
    if group.rank:
        message = group.share()
        requests = [unpacked(request, folder / str(place)) for place, request in enumerate(message["requests"])]
        return {}, message["opening"], requests
    record, opening, requests = read_record_and_requests(args)
    requests = [with_seeds(request) for request in requests]
    group.share({"opening": packed(opening), "requests": [packed(request) for request in requests]})
    return record, opening, requests


def _shared_plan(
    group: Group,
    args: argparse.Namespace,
    opened: Pipeline,
    jobs: Sequence[Job],
    memories: Sequence[int],
    progress: Progress,
) -> tuple[list[Path], list[int], Mode]:
    """Every picture's path, the numbers of those to be drawn, and how they are shared out."""
    manifest = opened.model.manifest
    asked = args.parallel or AUTO
    speed = group.link_speed() if asked == AUTO else USUAL_LINK
    own_paths = output_paths(args.output, jobs, manifest) if args.output_on_each_host or not group.rank else []
    if group.rank:
        plan = group.share()
        mode = Mode(plan["parallel"], tuple(plan["parts"]))
        return own_paths or [Path(path) for path in plan["paths"]], plan["wanted"], mode
    present = existing(own_paths, args.overwrite, args.skip_existing)
    wanted = [index for index, path in enumerate(own_paths) if path not in present]
    chosen = [jobs[index] for index in wanted]
    mode = choose(asked, opened.family, chosen, memories, speed) if wanted else Mode(PICTURES)
    paths = [str(path) for path in own_paths]
    group.share({"paths": paths, "wanted": wanted, "parallel": mode.name, "parts": mode.parts})
    if present:
        progress.say(skipped(present))
    if wanted:
        pictures = "picture" if len(wanted) == 1 else "pictures"
        link = f" (the link carries {speed:.2g} Gb/s)" if asked == AUTO else ""
        progress.say(f"{len(wanted)} {pictures} on {group.size} ranks: {mode.describe()}{link}")
    return own_paths, wanted, mode


def _draw(group: Group, mode: Mode, pictures: "_Pictures") -> None:
    opened, jobs = pictures.opened, pictures.jobs
    pictures.progress.note(*(note for job in jobs for note in job.notes))
    if mode.name == PICTURES:
        draw_pictures(group, pictures, [0] * len(jobs), by_residency(_resident_ranks(group, opened, jobs)))
        return
    group.start_collectives()
    shared: Shared
    if mode.name == LAYERS:
        shared = share_layers(opened, group, mode.parts)
    else:
        shared = opened.run_branches = BranchExchange(group)
    _resident_ranks(group, opened, jobs)

    def on_step(event: StepEvent) -> None:
        if group.rank == 0:
            pictures.show(event.picture, pictures.observe(event.picture, event), 0)

    results = draw_in_lockstep(group, opened, jobs, mode.describe(), shared, on_step)
    for index, result in enumerate(results):
        if group.rank == 0:
            pictures.keep(index, pictures.finish(index, result), 0)


def _resident_ranks(group: Group, opened: Pipeline, jobs: Sequence[Job]) -> list[bool]:
    """By rank, whether it can keep the model in memory; a rank that cannot draw the pictures ends all here."""
    resident = residency([made for made, _ in opened.plans(jobs)], opened.resident).resident
    return [bool(each["resident"]) for each in group.exchange({"resident": resident})]


@dataclass
class _Pictures:
    """What is done with pictures where they are drawn, and on rank 0. Used by several threads there."""

    group: Group
    opened: Pipeline
    jobs: Sequence[Job]
    args: argparse.Namespace
    paths: Sequence[Path]
    progress: Progress
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _steps: Counter[int] = field(default_factory=Counter)  # done, by picture
    _unread: int | None = None  # bytes that may still be printed; None: all

    def draw(self, indices: Sequence[int], on_step: Callable[[int, Message], None]) -> Iterator[tuple[int, Message]]:
        def observe(event: StepEvent) -> None:
            index = indices[event.picture]
            on_step(index, self.observe(index, event))

        for index, result in zip(indices, self.opened.stream([self.jobs[i] for i in indices], observe), strict=True):
            yield index, self.finish(index, result)

    def finish(self, index: int, result: Result) -> Message:
        """The files with their contents, unless they stay on this host, and what is printed."""
        args, path, rank = self.args, self.paths[index], self.group.rank
        result.report.choices.setdefault("parallel", f"{PICTURES}, drawn by rank {rank} of {self.group.size}")
        files: dict[Path, bytes] = {}
        if args.output_on_each_host:
            result.save(path, **what_to_save(args))
        else:
            files = result.encoded(path, **what_to_save(args))
        return {
            "files": list(files.items()),
            "line": result.line(path, args.json),
            "notes": result.report.notes,
            "said": f"seed {result.seed}, {result.report.total_seconds:.1f} s",
        }

    def observe(self, index: int, event: StepEvent) -> Message:
        """A step, with the unfinished picture's file where one is asked for."""
        path = step_path(self.paths[index], event, self.args.preview_every)
        files = [(path, encoded_picture(event.preview(), path))] if path else []
        return {"step": event.step, "steps": event.steps, "files": files}

    def keep(self, index: int, finished: Message, rank: int) -> None:
        _write(finished["files"])
        with self._turn:
            self.progress.clear()
            self.progress.note(*finished["notes"])
            self._print(finished["line"])
            self.progress.say(f"{finished['said']}, {self.group.name(rank)}")

    def show(self, index: int, observed: Message, rank: int) -> None:
        _write(observed["files"])
        with self._turn:
            self._steps[index] = observed["step"]
            self.progress.steps(self._steps.total(), observed["steps"] * len(self.paths))

    def lose(self, rank: int, indices: Sequence[int]) -> None:
        with self._turn:
            self._unread = UNREAD_BYTES if self._unread is None else self._unread
            for index in indices:
                self._steps[index] = 0
            self.progress.say(gone(self.group.name(rank), len(indices)))
            self.progress.quiet = True

    def _print(self, line: str) -> None:
        if self._unread is not None:
            self._unread -= len(os.fsencode(line)) + 1
        if self._unread is None or self._unread >= 0:
            print(line, flush=True)


def _write(files: Iterable[tuple[str | Path, bytes]]) -> None:
    for path, contents in files:
        write_bytes(Path(path), contents)
