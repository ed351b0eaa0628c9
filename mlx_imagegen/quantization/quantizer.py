"""`quantize`: a model and a recipe -> a folder that loads alone.

In: what the user named. Out: the folder, with its record of where it came from; or, from headers alone, what it would
be.
Must not know: how tensors are packed and written (packing/, convert.py).
"""

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import __version__
from ..errors import QuantizationError, RequestError
from ..families import open_family
from ..families.base import Family
from ..folding import Fold, Read
from ..hub.download import Notify, locate, notify_stderr, pending_download
from ..hub.manifest import Manifest, Model
from ..hub.recognition import as_folded
from ..hub.record import revision_of
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..layers.linear import Packing
from ..loading.weights import Progress, WeightTransforms
from ..lora.match import Lora, match_loras, module_names
from ..lora.merge import Merge, Wanted, open_loras, own_loras
from ..packing.recipes import Recipe, read_recipe, recipe_names
from ..pipeline import Pipeline, load
from ..planning.plan import describe, plan
from ..request.job import Job, usual_job
from ..request.options import check_types
from ..result import OnStep
from .calibrate import Statistics, collect
from .calibration_set import CalibrationCost, CalibrationItem, calibration_jobs, check_calibration_cost, learning
from .convert import Conversion, convert, identify, stamps_of
from .layout import Layout, Piece, layouts
from .partial import Partial, check_place, place_of

MAX_WORKERS = 8  # reading and writing are one disk's; more threads only take memory
SEARCH_COST = 6  # how many times longer looking for scales may take than plain rounding


@dataclass(frozen=True)
class Draft:
    """What a conversion would write, from headers alone."""

    model: Model
    folder: Path
    family: Family[Any]
    recipe: Recipe
    layouts: list[Layout]
    fold: Fold | None = None
    lessons: tuple[Job, ...] = ()  # the pictures to be drawn first, and learnt from

    @property
    def nbytes(self) -> int:
        return sum(layout.nbytes for layout in self.layouts)

    @property
    def denoiser(self) -> str:
        """What its checkpoint is called; only its layers are learnt about."""
        return self.family.transformer.weights.component

    @property
    def packings(self) -> dict[str, Packing]:
        """The denoiser's."""
        return next(layout.packings for layout in self.layouts if layout.component == self.denoiser)

    @functools.cached_property
    def learning(self) -> CalibrationCost | None:
        """What calibration takes."""
        return learning(self.family, self.lessons, self.packings) if self.lessons else None

    @property
    def notes(self) -> list[str]:
        """Where the recipe's wish could not be met, each reason once a component."""
        pieces = [piece for layout in self.layouts for piece in layout.pieces if piece.note]
        alike: dict[tuple[str, str], list[str]] = {}
        for piece in pieces:
            alike.setdefault((piece.component, piece.note), []).append(piece.path)
        fold = self.fold
        folded = [f"{fold.component}: folded for {fold.folded}, and for no other schedule"] if fold else []
        unmet = [
            f"{component}: {note} ({paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''})"
            for (component, note), paths in alike.items()
        ]
        return folded + self.recipe.idle(self.family.weights) + unmet


def draft(
    model: str | Path,
    quant: str,
    on_download: Notify = notify_stderr,
    fold: int | None = None,
    fold_size: tuple[int, int] | None = None,
    calibrate: Sequence[CalibrationItem] = (),
    loras: Sequence[Lora] = (),
    lora_partial: bool = False,
) -> Draft:
    """Opens the model and lays the output out; reads no weights. What can be refused by the model's published shapes
    is, before it is downloaded; LoRAs that do not fit them, too."""
    manifest = pending_download(str(model))
    if manifest and has_tensor_shapes(manifest):
        with shape_only_folder(manifest) as folder:
            made = plan_from_folder(Model(manifest, None, str(model)), folder, quant, fold, fold_size, calibrate)
            if made.learning:
                check_calibration_cost(manifest, made.learning)
            merged(made, loras, lora_partial)
    return plan_from_folder(*locate(str(model), on_download), quant, fold, fold_size, calibrate)


def plan_from_folder(
    found: Model,
    folder: Path,
    quant: str,
    fold: int | None,
    fold_size: tuple[int, int] | None,
    calibrate: Sequence[CalibrationItem],
) -> Draft:
    recipe = read_recipe(quant, found.manifest.family)
    family = open_family(found.manifest, folder, WeightTransforms())
    stored = next((weights for weights in family.weights.values() if weights.stored or weights.folded), None)
    if stored:
        source = f"{folder} is quantized already ({stored.component})"
        raise QuantizationError(
            f"{source}; quantizing again would add the errors of both. Begin with the full-precision model."
        )
    folded = _fold(family, found.manifest, fold, fold_size)
    # A folded copy draws one schedule alone, so that this is the one to learn from.
    taught = as_folded(found.manifest, _folded(folded))
    lessons = tuple(calibration_jobs(taught, family.size_multiple, calibrate))
    return Draft(found, folder, family, recipe, layouts(family, folder, recipe, folded), folded, lessons)


def merged(made: Draft, loras: Sequence[Lora], partial: bool) -> Merge:
    """The LoRAs on the draft's modules; refuses what does not fit."""
    merge = Merge()
    merge.choose(match_loras(loras, module_names(made.family), made.family.spec.title, partial))
    return merge


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    quant: str = "q6",
    lora: Sequence[Wanted] = (),
    lora_partial: bool = False,
    calibrate: Sequence[CalibrationItem] = (),
    fold: int | None = None,
    fold_size: tuple[int, int] | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
    on_step: OnStep | None = None,
    on_download: Notify = notify_stderr,
) -> Path:
    """Writes `model`, packed by the recipe `quant` (q8, q6, q4 or a .toml file), into the folder `output`.

    LoRAs are merged in full precision before. A run that was cut off goes on where it stopped.
    `calibrate`: pictures that the full model draws first, calling `on_step`; what its layers see then decides how the
    denoiser's weights are rounded. Each is a prompt, or a mapping with a prompt and more of generate's parameters
    (references, steps, width …). They are drawn again if a run was cut off.
    `fold`: a number of steps, for which tables take the place of the modulation's weights; the folder then draws no
    other. `fold_size`: (width, height) to go with it, where the schedule depends on the size.
    """
    check_types({"lora_partial": lora_partial})
    if workers is not None and (type(workers) is not int or workers < 1):
        raise RequestError(f"workers {workers!r}: give a number of threads from 1.")
    target = place_of(output)
    check_place(target)
    opened = open_loras(lora, on_download)  # before a model is downloaded for them
    made = draft(model, quant, on_download, fold, fold_size, calibrate, opened, lora_partial)
    loras = own_loras(made.model.manifest, on_download) + opened
    merge = merged(made, loras, lora_partial)
    for line in merge.found():
        on_download(f"note: {line}")
    chosen = [(each.file.checkpoint.stamp, each.scale) for each in loras]
    recipe, record, stamps = made.recipe, _record(made, merge), stamps_of(made.layouts)
    learnt = record.get("calibrated_with")
    partial = Partial(
        target, identify(stamps, made.layouts, __version__, recipe.digest, recipe.search, chosen, learnt, _entry(made))
    )
    if not partial.there:
        partial.refuse_foreign_folder()  # before the pictures for calibration are drawn
    seen: dict[tuple[str, str], Statistics] = {}
    if made.learning and not (partial.there or partial.complete):
        check_calibration_cost(made.model.manifest, made.learning)
        partial.check_room(made.nbytes)
        options: dict[str, Any] = {"lora": lora, "lora_partial": lora_partial, "resident": False}
        seen = _seen(made, load(model, **options, on_download=on_download), on_step)
    inputs = made.fold.inputs(_reader(made.family, made.fold, merge)) if made.fold else None
    conversion = Conversion(
        made.folder,
        made.layouts,
        recipe.search,
        record,
        merge,
        seen,
        _importance(made) if recipe.search else {},
        inputs,
        stamps,
    )
    convert(conversion, partial, workers or min(os.cpu_count() or 1, MAX_WORKERS), on_progress)
    for line in merge.losses():
        on_download(f"note: {line}")
    return target


def expected(made: Draft) -> list[str]:
    """What the copy will take in memory on a Mac, at the model's own size, a line each."""
    family = open_family(made.model.manifest, made.folder, made.recipe.applied_to(WeightTransforms()))
    job = usual_job(made.model.manifest, family.size_multiple)
    sizes = {layout.component: layout.nbytes for layout in made.layouts}
    return describe(plan(family, job.settings, True, job.prompt, sizes))


def quant_of_bits(bits: int) -> str:
    """--bits 6 -> q6"""
    name = f"q{bits}"
    if name not in recipe_names():
        raise QuantizationError(
            f"--bits {bits}: there are recipes for {', '.join(recipe_names())}; others can be given with --quant FILE."
        )
    return name


def _record(made: Draft, merge: Merge) -> dict[str, Any]:
    manifest = made.model.manifest
    weights = [layout for layout in made.layouts if layout.packings]
    return {
        "manifest": manifest.name,
        "source": manifest.repo if made.model.folder is None else str((made.model.file or made.folder).resolve()),
        "revision": revision_of(made.folder),
        "recipe": made.recipe.name,
        "bits_per_weight": {layout.component: round(layout.bits_per_weight, 3) for layout in weights},
        "lora": [match.lora.described() for match in merge.matches],
        **({"lora_partial": True} if any(match.unmatched for match in merge.matches) else {}),
        "tool": f"mlx-imagegen {__version__}",
        **({"folded": _folded(made.fold)} if made.fold else {}),
        **({"calibrated_with": [job.record(manifest.guidance) for job in made.lessons]} if made.lessons else {}),
    }


def _folded(fold: Fold | None) -> dict[str, Any] | None:
    return {"steps": fold.folded.steps, "size": fold.folded.size} if fold else None


def _fold(family: Family[Any], manifest: Manifest, steps: int | None, size: tuple[int, int] | None) -> Fold | None:
    if steps is None:
        if size is not None:
            raise QuantizationError("--fold-size: it goes with --fold STEPS; add that, or leave it out.")
        return None
    if size is not None and (not isinstance(size, list | tuple) or len(size) != 2):
        raise QuantizationError(f"fold_size {size!r}: give a width and a height.")
    given = dict(zip(("width", "height"), size, strict=True)) if size else {}
    fold = family.fold(usual_job(manifest, family.size_multiple, steps=steps, **given).settings)
    if size is not None and fold.folded.size is None:
        raise QuantizationError(f"--fold-size: {manifest.name}'s schedule is the same for every size; leave it out.")
    return fold


def _seen(made: Draft, pipeline: Pipeline, on_step: OnStep | None) -> dict[tuple[str, str], Statistics]:
    """What the full-precision model's layers are given while it draws the pictures, one stage at a time in memory."""
    found = collect(pipeline, made.lessons, made.packings, on_step)
    return {(made.denoiser, path): statistics for path, statistics in found.items()}


def _entry(made: Draft) -> object:
    return made.fold.folded.entry() if made.fold else None


def _reader(family: Family[Any], fold: Fold, merge: Merge) -> Read:
    weights = family.weights[fold.component]

    def read(path: str, parameter: str) -> np.ndarray:
        value = merge(fold.component, path, parameter, weights.slices[f"{path}.{parameter}"].read())
        return np.array(value.astype(mx.float32)).astype(np.float64)

    return read


def _importance(made: Draft) -> dict[tuple[str, str], np.ndarray]:
    """What the norms say, as arrays that any thread may read."""
    weights = made.family.weights
    packed = [(layout.component, path) for layout in made.layouts for path in layout.packings]
    known = {(component, path): weights[component].importance(path) for component, path in packed}
    return {layer: value for layer, value in known.items() if value is not None}


def table(made: Draft) -> list[tuple[str, str, int, int]]:
    """(tensors, what they become, how many, bytes), tensors of the same kind together: `blocks.{0-18}.attn.to_q`."""
    groups: dict[tuple[str, str], list[Piece]] = {}
    for layout in made.layouts:
        for piece in layout.pieces:
            kind = re.sub(r"(?<=\.)\d+(?=\.)", "#", piece.path)
            if piece.packing or piece.columns or piece.count > 2**16:  # the many small ones in one line
                groups.setdefault((f"{piece.component}/{kind}", _form(piece)), []).append(piece)
            else:
                groups.setdefault((f"{piece.component}/…", "as stored"), []).append(piece)
    return [
        (_range(name, pieces), form, len(pieces), sum(p.nbytes for p in pieces))
        for (name, form), pieces in groups.items()
    ]


def _form(piece: Piece) -> str:
    if piece.columns:
        return f"a table of {piece.columns} columns, {piece.dtype.lower()}"
    if piece.packing is None:
        return piece.dtype.lower()
    return f"{piece.packing.bits} bits, groups of {piece.packing.group_size}"


def _range(name: str, pieces: Sequence[Piece]) -> str:
    numbers = sorted({int(found[0]) for piece in pieces if (found := re.findall(r"(?<=\.)\d+(?=\.)", piece.path))})
    if "#" not in name or not numbers:
        return name
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    text = f"{numbers[0]}-{numbers[-1]}" if whole and len(numbers) > 1 else ",".join(map(str, numbers))
    return name.replace("#", f"{{{text}}}", 1).replace("#", "*")
