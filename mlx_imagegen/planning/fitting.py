"""Refuses what this machine cannot hold, names the largest that it can, and decides whether all stages stay in memory.

In: an open family and a picture's job. Out: the plan, or InsufficientMemoryError. Other models are judged by their
tensor shapes: their files need not be here.
Must not know: how stages run. `Pipeline` asks and obeys; the report repeats the reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InsufficientMemoryError
from ..families import open_family
from ..families.base import Family
from ..hub.manifest import Manifest, manifests
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..loading.weights import WeightTransforms
from ..machine import GB, USABLE_SHARE, physical_bytes
from ..packing.recipes import Recipe, read_recipe, recipe_names
from ..precision import on_gpu
from ..request.job import Job, usual_job
from .plan import Plan, held_bytes, plan


@dataclass(frozen=True)
class Residency:
    """Whether every component stays loaded, or one stage at a time is; and, of several pictures, whether each is
    decoded as soon as it is drawn, with the denoiser in memory, or all after the last."""

    resident: bool
    decode_at_once: bool
    reason: str


def residency(plans: Sequence[Plan], asked: bool | None) -> Residency:
    """For pictures with these plans, by the one that takes the most."""
    need, have = max(made.resident_peak_bytes for made in plans), physical_bytes()
    if asked and need > have:
        raise InsufficientMemoryError(
            f"resident: all stages at once need {need / GB:.1f} GB, and this machine has {have / GB:.1f} GB: it would "
            "not finish. Leave it out, and one stage at a time is in memory."
        )
    usable = have * USABLE_SHARE if asked is None else 0
    # Where another stage needs as much anyway, the decoder costs nothing.
    decode_at_once = all(made.decode_at_once_peak_bytes <= max(usable, made.peak_bytes) for made in plans)
    if asked is not None:
        return Residency(asked, asked or decode_at_once, "as asked")
    reason = f"all stages at once need {need / GB:.1f} GB, {usable / GB:.1f} GB of {have / GB:.1f} GB are usable"
    return Residency(need <= usable, decode_at_once, reason)


def check_fits(family: Family[Any], job: Job, manifest: Manifest) -> Plan:
    """Raises for a picture that this machine cannot make even with one stage at a time in memory."""
    made = _planned(family, job)
    refused = refusal(made, family, job, manifest)
    if refused:
        raise InsufficientMemoryError(refused)
    return made


def check_before_download(manifest: Manifest, transforms: WeightTransforms) -> None:
    """Raises where the weights of one stage alone are too many, whatever the picture's size."""
    if not has_tensor_shapes(manifest):
        return
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, transforms)
        held = [sum(held_bytes(family.components[c], on_gpu()) for c in names) for names in family.stages.values()]
        if max(held) > physical_bytes():
            check_fits(family, usual_job(manifest, family.size_multiple), manifest)


def refusal(made: Plan, family: Family[Any], job: Job, manifest: Manifest) -> str | None:
    """What does not fit, and what would; None where all is well."""
    have = physical_bytes()
    if made.peak_bytes <= have:
        return None
    worst = max(made.stages, key=lambda stage: stage.peak_bytes)
    smaller = next((quant for quant, peak in _packed_peaks(family, job) if peak <= have), None)
    if smaller:
        remedy = f"quant={smaller} would fit"
    elif job.prompt.references:  # other models are judged without, and most take none
        remedy = "no quant of this model fits; give fewer references, make a smaller picture or use another machine"
    else:
        remedy = f"no quant of this model fits; {_largest(have)}use another machine or a smaller picture"
    return (
        f"{manifest.name} needs {made.peak_bytes / GB:.1f} GB for its {worst.name} stage alone, and this machine has "
        f"{have / GB:.1f} GB: it would not finish. {remedy}."
    )


def _largest(have: int) -> str:
    """The published model and recipe that fill this machine best, at the model's own picture size."""
    best = (0, "")
    for manifest in manifests().values():
        if manifest.tensor_shapes != manifest.name:
            continue  # others have the shapes of one that does
        with shape_only_folder(manifest) as folder:
            family = open_family(manifest, folder, WeightTransforms())
            job = usual_job(manifest, family.size_multiple)
            packed = ((peak, f" with quant={quant}") for quant, peak in _packed_peaks(family, job))
            sizes = [(_planned(family, job).peak_bytes, ""), *packed]
            best = max([best, *((peak, f"{manifest.name}{how}") for peak, how in sizes if peak <= have)])
    return f"the largest that fits is {best[1]}: choose that, or " if best[1] else ""


def _packed_peaks(family: Family[Any], job: Job) -> Iterator[tuple[str, int]]:
    """Each recipe, q8 first, and the peak under it; none for what is packed on disk already."""
    if any(component.weights.stored for component in family.components.values()):
        return
    for name in sorted(recipe_names(), reverse=True):
        yield name, _planned(family, job, read_recipe(name, family.name)).peak_bytes


def _planned(family: Family[Any], job: Job, recipe: Recipe | None = None) -> Plan:
    return plan(family, job.settings, prompt=job.prompt, recipe=recipe)
