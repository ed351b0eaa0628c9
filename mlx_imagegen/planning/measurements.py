"""Seconds a step that were measured on Macs, and what they make likely on others.

In: the files of benchmarks/macs/, which `bench --share` writes and which hold what others published, too. Out:
`Measurement`s, and an `Estimate`: a plan's lower bound, divided by the share of it that the nearest chip reached.
Must not know: how a run is measured.
"""

import functools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..families import open_family
from ..hub.manifest import data_folder, manifests
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..loading.config import read_json
from ..loading.weights import WeightTransforms
from ..packing.recipes import read_recipe
from ..request.job import usual_job
from .chips import CHIPS, chip_named
from .plan import Plan, plan

TIERS = {"": 0, "pro": 1, "max": 2, "ultra": 3}
MATRIX_GENERATION = 5  # the first with matrix units, which reach another share of another peak
FAR = 10


@dataclass(frozen=True)
class Measurement:
    """One model by one quant at one size on one Mac."""

    chips: tuple[str, ...]  # one; all that it can have been where a source does not say
    model: str
    quant: str | None  # None: as stored
    width: int
    height: int
    seconds_per_step: float
    program: str
    source: str  # who published it; the file's name if it was shared
    published: bool = False  # by others, of their own program
    mlx: bool = True  # whether the program uses MLX
    peak_bytes: int | None = None
    note: str = ""

    def as_row(self) -> dict[str, Any]:
        """As files have it."""
        return {name: value for name, value in asdict(self).items() if name not in ("published", "source")}

    def __str__(self) -> str:
        quant = f" {self.quant}" if self.quant else ""
        whose = f"published: {self.source}" if self.published else f"measured: {self.source}"
        return f"{self.program} on {'/'.join(self.chips)} with {self.model}{quant} ({whose})"


@dataclass(frozen=True)
class Estimate:
    efficiency: float  # the share of its bound that a chip reached
    by: tuple[Measurement, ...]  # the nearest, all as near as one another

    def seconds(self, bound: float) -> float:
        return bound / self.efficiency

    def describe(self, chip: str, bound: float) -> str:
        share = f"{self.efficiency:.0%} of the bound was reached by {self.by[0]}"
        more = f" and {len(self.by) - 1} more" if len(self.by) > 1 else ""
        return f"{chip}: about {self.seconds(bound):.1f} s, an estimate: {share}{more}"


@functools.cache
def measurements(folder: Path | None = None) -> tuple[Measurement, ...]:
    folder = folder or data_folder("benchmarks") / "macs"
    return tuple(each for path in sorted(folder.glob("*.json")) for each in read(path))


def read(path: Path) -> list[Measurement]:
    data = read_json(path)
    published = bool(data.get("published"))
    try:
        return [
            Measurement(**{"source": path.stem, **row, "chips": tuple(row["chips"]), "published": published})
            for row in data["rows"]
        ]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: a row is damaged ({error}); write it again with `bench --share`.") from error


def estimate(chip: str, model: str, quant: str | None, known: Sequence[Measurement] | None = None) -> Estimate | None:
    """By what was measured on the nearest chip; there of the model, if any was, and then by the quant."""
    rows = [each for each in measurements() if is_usable(each)] if known is None else known
    if not rows:
        return None
    # This library's own rows first. The quant counts only among rows of the same model: what sets rows of other models
    # apart is their chips and programs.
    nearness = {
        each: (
            each.published,
            chip_distance(each.chips[0], chip),
            each.model != model,
            each.model == model and each.quant != quant,
        )
        for each in rows
    }
    nearest = [each for each in rows if nearness[each] == min(nearness.values())]
    return Estimate(statistics.median(efficiency(each, each.chips[0]) for each in nearest), tuple(nearest))


def is_usable(each: Measurement) -> bool:
    """Whether it says something of this library on a known chip."""
    return len(each.chips) == 1 and each.mlx and is_plannable(each)


def is_plannable(each: Measurement) -> bool:
    manifest = manifests().get(each.model)
    return manifest is not None and has_tensor_shapes(manifest) and set(each.chips) <= set(CHIPS)


def efficiency(each: Measurement, chip: str) -> float:
    return bound_per_step(each, chip) / each.seconds_per_step


def bound_per_step(each: Measurement, chip: str) -> float:
    made = _plan(each.model, each.quant, each.width, each.height)
    return made.seconds(chip_named(chip)) / made.steps


@functools.cache
def _plan(model: str, quant: str | None, width: int, height: int) -> Plan:
    manifest = manifests()[model]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        job = usual_job(manifest, family.size_multiple, width=width, height=height)
        recipe = read_recipe(quant, family.name) if quant else None
        return plan(family, job.settings, True, job.prompt, recipe=recipe)


def chip_distance(first: str, second: str) -> int:
    """Generations and sizes apart; far across the first matrix units."""
    (generation, tier), (other_generation, other_tier) = map(_place, (first, second))
    across = (generation < MATRIX_GENERATION) != (other_generation < MATRIX_GENERATION)
    return abs(generation - other_generation) + abs(tier - other_tier) + FAR * across


def _place(chip: str) -> tuple[int, int]:
    name, _, tier = chip.partition("-")
    return int(name.removeprefix("m")), TIERS[tier]
