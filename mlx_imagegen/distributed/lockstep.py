"""Every rank draws the same pictures at the same time; either branches or layers are shared out inside.

In: an open pipeline on each rank, with sharing set up. Out: the results, on every rank; rank 0's reports have the
seconds of all ranks.
Must not know: what is shared out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..pipeline import Pipeline
from ..request.job import Job
from ..result import OnStep, Result, StepEvent
from .group import Group

Statistics = dict[str, Any]


class Shared(Protocol):
    """What the ranks exchange within the loop."""

    def end_step(self) -> None: ...

    def take_statistics(self) -> Statistics:
        """This rank's statistics since the last call."""


def draw_in_lockstep(
    group: Group, pipeline: Pipeline, jobs: Sequence[Job], parallel: str, shared: Shared, on_step: OnStep | None = None
) -> Iterator[Result]:
    """Ranks meet after the last step of a picture, and nowhere outside the loop: one of them may decode each picture at
    once, another one all at the end."""
    seconds: list[float] = []
    ranks: dict[int, list[Statistics]] = {}

    def observe(event: StepEvent) -> None:
        shared.end_step()
        seconds.append(event.seconds)
        if event.step == event.steps:
            ranks[event.picture] = group.gather({"step_seconds": seconds.copy(), **shared.take_statistics()})
            seconds.clear()
        if on_step:
            on_step(event)

    for picture, result in enumerate(pipeline.stream(jobs, observe)):
        result.report.ranks = ranks.get(picture, [])
        result.report.choices["parallel"] = f"{parallel}, over {group.size} ranks"
        yield replace(result, record=result.record | {"parallel": parallel})
