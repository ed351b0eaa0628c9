"""What a conversion will write, from headers alone; LoRAs are opened, matched and selected, pictures for calibration
are checked.

In: what the user named. Out: `ConversionPlan`, which `quantizer.py` carries out and the command prints. What can be
refused is refused here, by the model's published shapes before it is downloaded.
Must not know: tensors' values, the folder that is written.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import LoraError, QuantizationError
from ..escaping import ranged
from ..families import open_family
from ..families.base import Family
from ..folding import Fold
from ..hub.component_folders import unpacked_folder
from ..hub.download import Notify, files_of, identify, notify_stderr, pending_download
from ..hub.manifest import Manifest, Model
from ..hub.recognition import as_folded
from ..hub.single_files import source_of
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..layers.linear import Packing
from ..loading.transforms import WeightTransforms
from ..lora.match import Lora, match_loras, module_names
from ..lora.merge import Merge, Wanted, open_loras, own_loras
from ..packing.recipes import Recipe, read_recipe
from ..planning.plan import describe, plan
from ..request.job import Job, usual_job
from .calibration_set import (
    CalibrationCost,
    CalibrationItem,
    calibration_cost,
    calibration_jobs,
    check_calibration_cost,
)
from .layout import Layout, Piece, layouts


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion writes, and all that it is made from."""

    model: Model
    folder: Path
    family: Family[Any]
    recipe: Recipe
    layouts: list[Layout]
    fold: Fold | None = None
    calibration_jobs: tuple[Job, ...] = ()  # pictures to be drawn first
    merge: Merge = field(default_factory=Merge)  # the selected LoRAs

    @property
    def nbytes(self) -> int:
        return sum(layout.nbytes for layout in self.layouts)

    @property
    def denoiser(self) -> str:
        """The component whose layers are calibrated."""
        return self.family.transformer.weights.component

    @property
    def packings(self) -> dict[str, Packing]:
        """The denoiser's."""
        return next(layout.packings for layout in self.layouts if layout.component == self.denoiser)

    @property
    def loras(self) -> list[Lora]:
        return [match.lora for match in self.merge.matches]

    @functools.cached_property
    def calibration_cost(self) -> CalibrationCost | None:
        """What calibration takes on this machine; None without pictures."""
        jobs = self.calibration_jobs
        return calibration_cost(self.family, jobs, self.packings) if jobs else None

    def check_cost(self) -> None:
        if self.calibration_cost:
            check_calibration_cost(self.model.manifest, self.calibration_cost)

    def with_loras(self, loras: Sequence[Lora], partial: bool) -> "ConversionPlan":
        """The same with these LoRAs merged; refuses those that do not fit."""
        merge, matches = Merge(), match_loras(loras, module_names(self.family), self.family.spec.title, partial)
        if wider := next((match for match in matches if match.widened), None):
            raise LoraError(
                f"{wider.lora.file.requested_as} widens the model's input for a control picture, which a new folder's "
                "config.json would have to say; give it to generate instead, on a folder that is made without it."
            )
        merge.select(matches)
        return replace(self, merge=merge)

    @property
    def notes(self) -> list[str]:
        """Where the recipe's rows could not be followed, each reason once a component."""
        pieces = [piece for layout in self.layouts for piece in layout.pieces if piece.note]
        same_reason: dict[tuple[str, str], list[str]] = {}
        for piece in pieces:
            same_reason.setdefault((piece.component, piece.note), []).append(piece.path)
        fold = self.fold
        folded = [f"{fold.component}: folded for {fold.folded}, and for no other schedule"] if fold else []
        unmet = [
            f"{component}: {note} ({paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''})"
            for (component, note), paths in same_reason.items()
        ]
        kept = [f"{layout.component}: {line}" for layout in self.layouts for line in layout.kept_lines]
        return folded + self.recipe.unused_rows(self.family.weights) + unmet + kept


def plan_conversion(
    model: str | Path,
    quant: str = "q6",
    *,
    lora: Sequence[Wanted] = (),
    lora_partial: bool = False,
    calibrate: Sequence[CalibrationItem] = (),
    fold: int | None = None,
    fold_size: tuple[int, int] | None = None,
    on_download: Notify = notify_stderr,
) -> ConversionPlan:
    """Opens the model and the LoRAs and lays the output out; reads no weights. The parameters are `quantize`'s."""
    loras = open_loras(lora, on_download)  # before a model is downloaded for them
    found = identify(str(model))
    manifest = pending_download(found)
    if manifest and has_tensor_shapes(manifest):
        with shape_only_folder(manifest) as folder:
            early = plan_from_folder(found, folder, quant, fold, fold_size, calibrate)
            early.check_cost()
            early.with_loras(loras, lora_partial)
    folder = files_of(found, on_download)
    if loras and found.file:  # they change numbers, not codes
        folder = unpacked_folder(folder) or folder
    planned = plan_from_folder(found, folder, quant, fold, fold_size, calibrate)
    return planned.with_loras([*own_loras(planned.model.manifest, on_download), *loras], lora_partial)


def plan_from_folder(
    found: Model,
    folder: Path,
    quant: str,
    fold: int | None,
    fold_size: tuple[int, int] | None,
    calibrate: Sequence[CalibrationItem],
) -> ConversionPlan:
    recipe = read_recipe(quant, found.manifest.family)
    family = open_family(found.manifest, folder, WeightTransforms())
    packed = (weights for weights in family.weights.values() if weights.folded or not weights.packed_by_format)
    stored = next(packed, None)
    if stored:
        source = f"{source_of(folder)} is quantized already ({stored.component})"
        raise QuantizationError(
            f"{source}; quantizing again would add the errors of both. Begin with the full-precision model."
        )
    made_fold = _fold(family, found.manifest, fold, fold_size)
    # A folded copy draws one schedule alone, so calibration draws that one.
    manifest = as_folded(found.manifest, made_fold.folded.schedule if made_fold else None)
    jobs = tuple(calibration_jobs(manifest, family.size_multiple, calibrate))
    return ConversionPlan(found, folder, family, recipe, layouts(family, folder, recipe, made_fold), made_fold, jobs)


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


def memory_lines(planned: ConversionPlan) -> list[str]:
    """What the copy will take in memory on a Mac, at the model's own size, a line each."""
    family = open_family(planned.model.manifest, planned.folder, planned.recipe.applied_to(WeightTransforms()))
    job = usual_job(planned.model.manifest, family.size_multiple)
    sizes = {layout.component: layout.nbytes for layout in planned.layouts}
    return describe(plan(family, job.settings, True, job.prompt, sizes))


def table(planned: ConversionPlan) -> list[tuple[str, str, int, int]]:
    """(tensors, what they become, how many, bytes), tensors of the same kind together: `blocks.{0-18}.attn.to_q`."""
    groups: dict[tuple[str, str], list[Piece]] = {}
    for layout in planned.layouts:
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
    numbers = [int(found[0]) for piece in pieces if (found := re.search(r"(?<=\.)\d+(?=\.)", piece.path))]
    return name.replace("#", f"{{{ranged(numbers)}}}", 1).replace("#", "*") if "#" in name and numbers else name
