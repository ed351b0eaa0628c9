"""Chooses how a request is shared out: as the user asked, or the fastest way that fits.

In: what the user asked for, the model, the jobs and each rank's memory. Out: a `Mode`, or an error that says why the
chosen one is not possible. Must not know: how any of them works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from ..families.base import Family
from ..machine import machine
from ..planning.chips import CHIPS, chip_of
from ..planning.hosts import ANY_CHIP, BRANCHES, LAYERS, PICTURES, USUAL_LINK, choose_way, layer_parts, ways
from ..request.job import Job
from .branches import why_not_branches
from .layers import why_not_layers

AUTO = "auto"


@dataclass(frozen=True)
class Mode:
    name: str
    parts: tuple[int, ...] = ()  # of layers, each rank's in relation to the others'

    def describe(self) -> str:
        uneven = len(set(self.parts)) > 1
        return f"{self.name}, in parts of {' : '.join(map(str, self.parts))}" if uneven else self.name


def choose(
    asked: str, family: Family[Any], jobs: Sequence[Job], memories: Sequence[int], gigabits: float = USUAL_LINK
) -> Mode:
    """`memories`: bytes that each rank may hold; `gigabits`: per second, of their link. Ranks count as equally fast."""
    why_not = {BRANCHES: why_not_branches(jobs, len(memories)), LAYERS: why_not_layers(family, jobs, len(memories))}
    if reason := why_not.get(asked):
        raise RequestError(f"--parallel {asked}: {reason}.")
    if asked in (PICTURES, BRANCHES):
        return Mode(asked)
    job = max(jobs, key=lambda each: each.settings.width * each.settings.height)
    parts = (1,) * len(memories)
    if why_not[LAYERS] is None:
        parts = layer_parts(family, job.settings, memories, prompt=job.prompt)
    if asked == LAYERS:
        return Mode(LAYERS, parts)
    found = [way for way in ways(family, job.settings, parts, prompt=job.prompt) if not why_not.get(way.name)]
    chip = chip_of(machine()["device"])
    fitting = {way.name: way for way in found if way.lacking(memories) is None}
    if chip or not fitting:
        way = choose_way(found, memories, CHIPS[chip or ANY_CHIP], gigabits, len(jobs))
        return Mode(way.name, way.parts)
    few = len(jobs) < len(memories)  # nothing is known of the chip's speed: what costs least to exchange
    name = next(name for name in ((BRANCHES, PICTURES) if few else (PICTURES, BRANCHES)) + (LAYERS,) if name in fitting)
    return Mode(name, fitting[name].parts)
