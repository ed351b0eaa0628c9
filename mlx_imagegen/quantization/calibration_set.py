"""The pictures for calibration: which they are, and what drawing them cost.

In: what the user named, a manifest, an open family, how its layers will be packed. Out: jobs, checked; their
`CalibrationCost`, from shapes alone. Whatever is refused here is refused before anything is drawn.
Must not know: recipes, the folder that is written, how layers are watched (calibrate.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InsufficientMemoryError, RequestError
from ..families.base import Family
from ..hub.manifest import Manifest
from ..layers.linear import Packing
from ..machine import GB, memory_limit
from ..planning.plan import plan
from ..request.job import Job, resolve
from .calibrate import empty_statistics

CalibrationItem = str | Mapping[str, Any]  # a prompt, or generate's parameters with a prompt among them
SEED = 0  # where none is given: other prompts tell more than other seeds
LINE = '{"prompt": "…", "references": ["photo.png"]}'


def calibration_jobs(manifest: Manifest, size_multiple: int, asked: Sequence[CalibrationItem]) -> list[Job]:
    if not isinstance(asked, list | tuple):
        raise RequestError(f"calibrate {asked!r}: give a list, of prompts or of mappings with a prompt each.")
    return [job for item in asked for job in _jobs(manifest, size_multiple, item)]


def _jobs(manifest: Manifest, size_multiple: int, item: CalibrationItem) -> list[Job]:
    request = {"prompt": item} if isinstance(item, str) else item
    if not isinstance(request, Mapping) or "prompt" not in request:
        raise RequestError(f"calibrate {item!r}: give a prompt, or a mapping with a prompt and its parameters.")
    named = f"calibrate, {request['prompt']!r}"
    if manifest.extras.get("references_least", 0) and not request.get("references"):
        raise RequestError(
            f"{named}: {manifest.name} changes pictures, and none is given; give each prompt its own, on a line such as"
            f" {LINE}, or a mapping like it in Python."
        )
    try:
        return resolve(manifest, size_multiple, **{"seed": SEED, **request})
    except RequestError as error:
        raise RequestError(f"{named}: {error}") from error


@dataclass(frozen=True)
class CalibrationCost:
    """What calibration takes on this machine."""

    pictures: int
    steps: int  # of all pictures
    statistics_bytes: int  # the statistics
    peak_bytes: int  # with them, one stage of the model at a time
    least_bytes: int  # the same, if the pictures were of no size

    def __str__(self) -> str:
        return (
            f"calibration: {self.steps} steps of {self.pictures} picture{'s' if self.pictures > 1 else ''} in full "
            f"precision, in {self.peak_bytes / GB:.1f} GB of memory here, {self.statistics_bytes / GB:.1f} GB of it for"
            " the layers' statistics"
        )


def calibration_cost(family: Family[Any], jobs: Sequence[Job], packings: Mapping[str, Packing]) -> CalibrationCost:
    statistics_bytes = sum(each.nbytes for each in empty_statistics(family.transformer, packings).values())
    sizes = {
        (job.settings.width, job.settings.height, *(picture.size for picture in job.prompt.references)): job
        for job in jobs
    }
    plans = [plan(family, job.settings, prompt=job.prompt) for job in sizes.values()]
    # All prompts are encoded before the first step.
    stages = [
        (stage, 0 if stage.name == "encode" else statistics_bytes) for planned in plans for stage in planned.stages
    ]
    return CalibrationCost(
        len(jobs),
        sum(job.settings.steps for job in jobs),
        statistics_bytes,
        max(stage.peak_bytes + extra for stage, extra in stages),
        max(stage.base_bytes + stage.resident_bytes + extra for stage, extra in stages),
    )


def check_calibration_cost(manifest: Manifest, cost: CalibrationCost) -> None:
    """Raises for pictures that this machine cannot draw."""
    if not cost.statistics_bytes:
        raise RequestError(
            "calibrate: it would change nothing, since no layer of the denoiser is packed in a way that gains by it; "
            "leave it out, or choose q6 or q4."
        )
    refused = too_large(manifest, cost)
    if refused:
        raise InsufficientMemoryError(refused)


def too_large(manifest: Manifest, cost: CalibrationCost) -> str | None:
    limit = memory_limit()
    if cost.peak_bytes <= limit.most_bytes:
        return None
    smaller = "Give the pictures a smaller width and height, or calibrate"
    remedy = smaller if cost.least_bytes <= limit.most_bytes else "Calibrate"
    return (
        f"calibrate: {manifest.name} in full precision takes {cost.peak_bytes / GB:.1f} GB while it draws, "
        f"{cost.statistics_bytes / GB:.1f} GB of it for the layers' statistics, and {limit}. "
        f"{remedy} on a machine with more memory, whose folder is as good here; or leave calibrate "
        "out: without it a copy of any model is made in less than 1 GB."
    )
