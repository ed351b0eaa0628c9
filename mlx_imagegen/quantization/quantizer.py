"""`quantize`: a model and a recipe -> a folder that loads alone.

In: what the user named, or the plan of a conversion. Out: the folder, with its record of where it came from.
Must not know: how tensors are packed and written (packing/, convert.py).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import __version__
from ..errors import QuantizationError, RequestError, file_errors
from ..folding import Fold, Read
from ..hub.download import Notify, notify_stderr
from ..hub.record import revision_of
from ..loading.transforms import Progress
from ..loading.weights import Weights
from ..lora.merge import Merge, Wanted
from ..packing.importance import importance_in
from ..packing.recipes import recipe_names
from ..pipeline import load
from ..request.options import check_callable, check_types
from ..result import OnStep
from .calibrate import Statistics, collect
from .calibration_set import CalibrationItem
from .card import card
from .conversion_plan import ConversionPlan, plan_conversion
from .convert import Conversion, Stamp, convert, identify, stamps_of
from .partial import MOST_WORKERS, Partial, check_place, place_of

MAX_WORKERS = 8  # reading and writing are one disk's; more threads only take memory
DEFAULT_QUANT = "q6"
SEARCH_COST = 6  # how many times longer looking for scales may take than plain rounding


@file_errors()
def quantize(
    model: str | Path,
    output: str | Path,
    *,
    quant: str | None = None,
    bits: int | None = None,
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
    """Writes `model`, packed by the recipe `quant` (q8, q6, q4 or a .toml file; q6 if none is given), into the folder
    `output`. `bits`: 8, 6 or 4, the recipe of that name.

    LoRAs are merged in full precision before. A run that was cut off goes on where it stopped.
    `calibrate`: pictures that the full model draws first, calling `on_step`; what its layers see then decides how the
    denoiser's weights are rounded. Each is a prompt, or a mapping with a prompt and more of generate's parameters
    (references, steps, width …). They are drawn again if a run was cut off.
    `fold`: a number of steps, for which tables take the place of the modulation's weights; the folder then draws no
    other. `fold_size`: (width, height) to go with it, where the schedule depends on the size.
    """
    check_types({"lora_partial": lora_partial})
    check_callable(on_progress=on_progress, on_step=on_step, on_download=on_download)
    if workers is not None and (type(workers) is not int or not 1 <= workers <= MOST_WORKERS):
        raise RequestError(f"workers {workers!r}: give a number of threads from 1 to {MOST_WORKERS}.")
    target = place_of(output)
    check_place(target)
    plan = plan_conversion(
        model,
        chosen_quant(quant, bits),
        lora=lora,
        lora_partial=lora_partial,
        calibrate=calibrate,
        fold=fold,
        fold_size=fold_size,
        on_download=on_download,
    )
    return write_conversion(plan, target, workers, on_progress, on_step, on_download)


def write_conversion(
    plan: ConversionPlan,
    target: Path,
    workers: int | None,
    on_progress: Progress | None,
    on_step: OnStep | None,
    on_download: Notify,
) -> Path:
    """Writes what was planned into the folder `target`; the other parameters are `quantize`'s."""
    merge = plan.merge
    for line in merge.match_lines():
        on_download(f"note: {line}")
    record, stamps = _record(plan), stamps_of(plan.layouts)
    partial = Partial(target, _identity(plan, record, stamps))
    if not partial.is_complete:
        partial.refuse_foreign_folder()  # before the pictures for calibration are drawn
    if foreign := partial.foreign_bytes:
        on_download(f"note: {partial.folder} ({foreign / 1e9:.2f} GB) is of another conversion, and is removed")
    statistics: dict[tuple[str, str], Statistics] = {}
    if plan.calibration_cost and not (partial.is_complete or partial.is_written):
        plan.check_cost()
        partial.check_room(plan.nbytes)
        statistics = _collect(plan, on_step, on_download)
    conversion = Conversion(
        plan.folder,
        plan.layouts,
        plan.recipe.search,
        record,
        merge,
        statistics,
        _importance(plan) if plan.recipe.search else {},
        plan.fold.inputs(_reader(plan.family.weights[plan.fold.component], plan.fold, merge)) if plan.fold else None,
        stamps,
        card(record),
    )
    convert(conversion, partial, workers or min(os.cpu_count() or 1, MAX_WORKERS), on_progress)
    for line in merge.loss_lines():
        on_download(f"note: {line}")
    return target


def is_written(plan: ConversionPlan, target: Path) -> bool:
    """Whether the folder is there already, made from the same."""
    record = _record(plan)
    return Partial(target, _identity(plan, record, stamps_of(plan.layouts))).is_complete


def chosen_quant(quant: str | None, bits: int | None) -> str:
    """The recipe of `quant=` and `bits=`, of which one may be given."""
    if quant is not None and bits is not None:
        raise RequestError(f"quant {quant!r} and bits {bits!r} both name a recipe; give one of the two.")
    if bits is not None and f"q{bits}" not in recipe_names():
        raise QuantizationError(
            f"bits {bits}: there are recipes for {', '.join(recipe_names())}; quant takes others, as files."
        )
    if bits is not None:
        return f"q{bits}"
    return DEFAULT_QUANT if quant is None else quant


def _identity(plan: ConversionPlan, record: dict[str, Any], stamps: dict[Path, Stamp]) -> str:
    """Of everything that decides what is written."""
    loras = [(lora.file.checkpoint.stamp, lora.scale) for lora in plan.loras]
    fold = plan.fold.folded.entry() if plan.fold else None
    recipe = plan.recipe
    calibrated_with = record.get("calibrated_with")
    return identify(stamps, plan.layouts, __version__, recipe.digest, recipe.search, loras, calibrated_with, fold)


def _record(plan: ConversionPlan) -> dict[str, Any]:
    manifest = plan.model.manifest
    weights = [layout for layout in plan.layouts if layout.packings]
    pictures = [job.record(manifest.guidance) for job in plan.calibration_jobs]
    return {
        "manifest": manifest.name,
        "source": manifest.repo if plan.model.folder is None else str((plan.model.file or plan.folder).resolve()),
        "revision": revision_of(plan.folder),
        "licence": manifest.licence,
        "recipe": plan.recipe.name,
        "bits_per_weight": {layout.component: round(layout.bits_per_weight, 3) for layout in weights},
        "lora": [match.lora.described() for match in plan.merge.matches],
        **({"lora_partial": True} if any(match.unmatched for match in plan.merge.matches) else {}),
        "tool": f"mlx-imagegen {__version__}",
        **({"folded": plan.fold.folded.schedule} if plan.fold else {}),
        **({"calibrated_with": pictures} if pictures else {}),
    }


def _collect(plan: ConversionPlan, on_step: OnStep | None, on_download: Notify) -> dict[tuple[str, str], Statistics]:
    """What the full-precision model's layers are given while it draws the pictures, one stage at a time in memory."""
    loras = [lora for lora in plan.loras if not lora.own]  # the model's own comes with it
    partial = any(match.unmatched for match in plan.merge.matches)
    pipeline = load(plan.model.requested_as, lora=loras, lora_partial=partial, resident=False, on_download=on_download)
    statistics = collect(pipeline, plan.calibration_jobs, plan.packings, on_step)
    return {(plan.denoiser, path): of_layer for path, of_layer in statistics.items()}


def _reader(weights: Weights, fold: Fold, merge: Merge) -> Read:
    def read(path: str, parameter: str) -> np.ndarray:
        value = merge(fold.component, path, parameter, weights.slices[f"{path}.{parameter}"].read())
        return np.array(value.astype(mx.float32)).astype(np.float64)

    return read


def _importance(plan: ConversionPlan) -> dict[tuple[str, str], np.ndarray]:
    """What the norms say, as arrays that any thread may read."""
    weights, norms = plan.family.weights, plan.recipe.norms
    packed = [(layout.component, path) for layout in plan.layouts for path in layout.packings]
    known = {(component, path): importance_in(weights[component], path, norms) for component, path in packed}
    return {layer: value for layer, value in known.items() if value is not None}
