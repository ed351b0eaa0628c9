"""Which model to begin with on a Mac whose GPU may hold so much: the best that fits, and the fastest.

In: the bytes that a run may hold, and a chip to compute seconds with. Out: a model and a recipe for each, from the
published tensor shapes alone: nothing is downloaded, nothing is run. Which model's pictures are best is not measured
here: the best is the largest, with most parameters in the loop, at 6 bits a weight or more while any model fits so,
and of those that draw a picture in five minutes, by what was measured on Macs. Models that ask for access first, or
for pictures to change, are no start.
Must not know: which models there are, what this machine has.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import QuantizationError
from ..families import open_family
from ..families.base import Family
from ..hub.manifest import Manifest, manifests
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..loading.component import Component
from ..loading.weights import WeightTransforms
from ..machine import GB
from ..packing.recipes import Recipe, read_recipe, recipe_names
from ..request.job import Job, usual_job
from .chips import CHIPS, Chip
from .measurements import estimate
from .plan import plan

CHIP_NAME = "m4"
CHIP = CHIPS[CHIP_NAME]  # another one's seconds differ, and hardly the order
PATIENCE_SECONDS = 300  # of the loop: for whom a model is the first, half an hour is a failure
FEW_BITS = 6.0  # a weight; below, losses are known to show in some pictures


@dataclass(frozen=True)
class Start:
    """A model by a recipe (None: as it is stored), at the model's usual picture."""

    model: str
    quant: str | None
    peak_bytes: int  # one stage at a time
    parameters: int  # of the linear layers in the loop
    bits: float  # of each, as it is held
    steps: int
    seconds: float  # of the loop, at the least
    likely_seconds: float  # by what the nearest Mac reached (measurements.py); the same where the chip has no name
    download_bytes: int

    def __str__(self) -> str:
        how = f" --quant {self.quant}" if self.quant else ""
        download = f"{self.download_bytes / GB:.1f} GB to download, " if self.download_bytes else ""
        sizes = f"{self.peak_bytes / GB:.1f} GB at the peak, {download}"
        likely = f", likely {self.likely_seconds:.0f} s" if self.likely_seconds > self.seconds else ""
        return f"{self.model}{how} ({sizes}{self.steps} steps in {self.seconds:.0f} s at least{likely})"


@dataclass(frozen=True)
class Recommendation:
    best: Start
    fastest: Start

    def lines(self) -> list[str]:
        if self.best == self.fastest:
            return [f"best quality and fastest that fits: {self.best}"]
        minutes = PATIENCE_SECONDS // 60
        return [
            f"best quality that fits, in {minutes} minutes a picture or less: {self.best}",
            f"fastest that fits: {self.fastest}",
        ]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys((self.best.model, self.fastest.model)))


def recommend(usable_bytes: float, chip: Chip = CHIP, gpu: bool = True) -> Recommendation | None:
    """None where nothing fits. `gpu`: as on a Mac, or as on the CPU (plan.py)."""
    return choose(starts(chip, gpu), usable_bytes)


def choose(all_starts: Iterable[Start], usable_bytes: float) -> Recommendation | None:
    fitting = [start for start in all_starts if start.peak_bytes <= usable_bytes]
    if not fitting:
        return None
    dependable = [start for start in fitting if start.bits >= FEW_BITS] or fitting
    fastest = min(dependable, key=lambda start: (start.seconds, -start.bits, start.model))
    bearable = [start for start in dependable if start.likely_seconds <= PATIENCE_SECONDS] or [fastest]
    # Of models with one size: the one that is not distilled, and of editions the newest.
    best = max(bearable, key=lambda start: (start.parameters, start.bits, start.steps, _edition(start.model)))
    return Recommendation(best, fastest)


def _edition(model: str) -> list[str]:
    """The year and month in a name."""
    return re.findall(r"\b\d{4}\b", model)


@functools.cache
def starts(chip: Chip = CHIP, gpu: bool = True) -> tuple[Start, ...]:
    """Every published model by every recipe."""
    groups: dict[str, list[Manifest]] = {}
    for manifest in filter(_is_start, manifests().values()):
        groups.setdefault(f"{manifest.family} {manifest.tensor_shapes}", []).append(manifest)
    return tuple(start for group in groups.values() for start in _starts(group, chip, gpu))


def _is_start(manifest: Manifest) -> bool:
    needs_pictures = manifest.extras.get("references_least", 0) > 0
    return has_tensor_shapes(manifest) and not (manifest.gated or manifest.bundled or needs_pictures)


def _starts(models: Sequence[Manifest], chip: Chip, gpu: bool) -> Iterator[Start]:
    """Of models with the same tensor shapes."""
    with shape_only_folder(models[0]) as folder:
        family = open_family(models[0], folder, WeightTransforms())
        for manifest in models:
            job = usual_job(manifest, family.size_multiple)
            yield from starts_of(family, job, manifest.name, manifest.download_bytes, chip, gpu)


def starts_of(family: Family[Any], job: Job, name: str, download_bytes: int, chip: Chip, gpu: bool) -> Iterator[Start]:
    """One model by every recipe; as it is stored alone, if that is packed."""
    loop = family.transformer
    parameters = sum(math.prod(shape) for _, shape, _ in loop.linears())
    stored = any(component.weights.stored for component in family.components.values())
    for quant, recipe in {None: None, **({} if stored else _recipes(family.name))}.items():
        made = plan(family, job.settings, gpu, job.prompt, recipe=recipe)
        held = _held_bits(loop, recipe) / parameters
        seconds = made.seconds(chip)
        likely = _likely_seconds(seconds, chip, name, quant)
        yield Start(name, quant, made.peak_bytes, parameters, held, made.steps, seconds, likely, download_bytes)


def _likely_seconds(bound: float, chip: Chip, model: str, quant: str | None) -> float:
    chip_name = next((name for name, each in CHIPS.items() if each == chip), None)
    nearest = estimate(chip_name, model, quant) if chip_name else None
    return nearest.seconds(bound) if nearest else bound


def _recipes(family: str) -> dict[str | None, Recipe | None]:
    """Those with rows for the family; none has, for one of another package."""
    found: dict[str | None, Recipe | None] = {}
    for name in recipe_names():
        with suppress(QuantizationError):
            found[name] = read_recipe(name, family)
    return found


def _held_bits(loop: Component, recipe: Recipe | None) -> float:
    return sum(
        math.prod(shape) * (packing.bits_per_weight if packing else 16)
        for _, shape, packing in loop.linears(recipe.packing if recipe else None)
    )
