"""Which models fit this machine, by every quant, and how long their steps take at the speed measured here.

In: models' names or folders, or none for all. Out: `Fit`s, fastest first. Only headers are read, of files or of what
is known of them: nothing is downloaded or run but the measuring of the machine.
Must not know: the command line.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from ..errors import ImagegenError
from ..families import open_family
from ..hub.download import local_folder
from ..hub.manifest import Model, manifests
from ..hub.recognition import find
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..loading.weights import WeightTransforms
from ..machine import GB, memory_limit
from ..packing.recipes import AS_STORED, read_recipe, recipe_names
from ..planning.chips import Chip
from ..planning.plan import plan
from ..precision import on_gpu
from ..request.job import usual_job
from . import speed

OPENED_BY = ("references", "sizes")  # what families read in a manifest of their own keys


@dataclass(frozen=True)
class Fit:
    """A model by a quant on this machine, at the model's usual size."""

    model: str
    quant: str
    reason: str | None = None  # why nothing else is known
    peak_bytes: int = 0  # one stage at a time
    all_bytes: int = 0  # all stages at once
    seconds: float = 0.0  # of the loop, at the speed measured here
    download_bytes: int = 0  # what has to be fetched first

    @property
    def verdict(self) -> str:
        if self.reason:
            return self.reason
        limit = memory_limit()
        if self.peak_bytes > limit.most_bytes:
            return f"does not fit: {self.peak_bytes / GB:.1f} GB at the peak"
        fetch = f"; {self.download_bytes / GB:.1f} GB to download" if self.download_bytes else ""
        if self.peak_bytes > limit.usable_bytes:
            return f"only with every other program closed{fetch}"
        once = self.all_bytes <= limit.usable_bytes
        return f"fits, {'all stages at once' if once else 'one stage at a time'}{fetch}"


def fits(models: Sequence[str] = (), chip: Chip | None = None) -> list[Fit]:
    """The models named, or all there are, by every quant; those that fit and are fastest first, then the rest. `chip`:
    as fast as that; this machine, measured, if not given."""
    chip, groups = chip or speed.measured_chip(), dict[str, list[Model]]()
    for model in map(find, dict.fromkeys(models) or manifests()):
        groups.setdefault(_opened_from(model), []).append(model)
    found = [fit for group in groups.values() for fit in _fits(group, chip)]
    most = memory_limit().most_bytes
    return sorted(found, key=lambda fit: (fit.reason is not None, fit.peak_bytes > most, fit.seconds))


def _opened_from(model: Model) -> str:
    """Equal where families open the same files: many manifests have one transformer."""
    manifest = model.manifest
    if folder := model.folder or local_folder(manifest):
        return f"{folder} {manifest.name}"
    return repr(
        (manifest.family, manifest.tensor_shapes, manifest.edits, [manifest.extras.get(key) for key in OPENED_BY])
    )


def _fits(models: Sequence[Model], chip: Chip) -> Iterator[Fit]:
    """Of models with the same shapes; of those that are not here, the published shapes are known."""
    manifest, folder = models[0].manifest, models[0].folder or local_folder(models[0].manifest)
    if folder is None and not has_tensor_shapes(manifest):
        yield from (Fit(model.requested_as, AS_STORED, "not here, and its shapes are not known") for model in models)
        return
    with nullcontext(folder) if folder else shape_only_folder(manifest) as where:
        try:
            family = open_family(manifest, where, WeightTransforms())
        except ImagegenError as error:
            yield from (Fit(model.requested_as, AS_STORED, str(error)) for model in models)
            return
        jobs = [usual_job(model.manifest, family.size_multiple) for model in models]
        for quant in (AS_STORED, *sorted(recipe_names(), reverse=True)):
            recipe = None if quant == AS_STORED else read_recipe(quant, manifest.family)
            try:
                if recipe and any(weights.stored for weights in family.weights.values()):
                    open_family(manifest, where, recipe.applied_to(WeightTransforms()))  # says why not
            except ImagegenError as error:
                yield from (Fit(model.requested_as, quant, str(error)) for model in models)
                continue
            for model, job in zip(models, jobs, strict=True):
                made = plan(family, job.settings, on_gpu(), job.prompt, recipe=recipe)
                download = 0 if folder else model.manifest.download_bytes
                sizes = made.peak_bytes, made.resident_peak_bytes
                yield Fit(model.requested_as, quant, None, *sizes, made.seconds(chip), download)
