"""Refuses what this machine cannot hold, names the largest that it can, and decides what stays in memory.

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
from ..machine import GB, memory_limit
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
    keep_prompt_weights: bool = False  # those that are read for every new prompt


def residency(plans: Sequence[Plan], asked: bool | None, prompt_weight_bytes: int = 0) -> Residency:
    """For pictures with these plans. What is read for every new prompt stays too, if all else does and fits."""
    need, limit = max(made.resident_peak_bytes for made in plans), memory_limit()
    if asked and need > limit.most_bytes:
        raise InsufficientMemoryError(
            f"resident: all stages at once need {need / GB:.1f} GB, and {limit}: it would not finish. Leave it out, "
            "and one stage at a time is in memory."
        )
    usable = limit.usable_bytes if asked is None else 0
    # Where another stage needs as much anyway, the decoder costs nothing.
    decode_at_once = all(made.decode_at_once_peak_bytes <= max(usable, made.peak_bytes) for made in plans)
    keep = need + prompt_weight_bytes <= limit.usable_bytes and asked is not False
    if asked is not None:
        return Residency(asked, asked or decode_at_once, "as asked", keep)
    reason = f"all stages at once need {need / GB:.1f} GB, {usable / GB:.1f} GB are usable: {limit}"
    return Residency(need <= usable, decode_at_once, reason, keep)


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
        if max(held) > memory_limit().most_bytes:
            check_fits(family, usual_job(manifest, family.size_multiple), manifest)


def refusal(made: Plan, family: Family[Any], job: Job, manifest: Manifest) -> str | None:
    """What does not fit, and what would; None where all is well."""
    limit = memory_limit()
    if made.peak_bytes <= limit.most_bytes:
        return None
    worst = max(made.stages, key=lambda stage: stage.peak_bytes)
    remedy = _remedy(family, job, limit.most_bytes)
    return (
        f"{manifest.name} needs {made.peak_bytes / GB:.1f} GB for its {worst.name} stage alone, and {limit}: it would "
        f"not finish. {'Raise that limit. ' if limit.is_ulimit else ''}{remedy[0].upper()}{remedy[1:]}."
    )


def ran_out(made: Plan, family: Family[Any], job: Job, manifest: Manifest) -> str:
    """What to say of a run that by its plan fits, and met the end of memory all the same."""
    limit = memory_limit()
    remedy = _remedy(family, job, min(made.peak_bytes - 1, limit.most_bytes))
    return (
        f"memory ran out: {manifest.name} takes about {made.peak_bytes / GB:.1f} GB, and {limit}, of which other "
        f"programs hold a part. Close those that hold much, or ask for less: {remedy}."
    )


def _remedy(family: Family[Any], job: Job, most_bytes: int) -> str:
    """What fits into so much memory."""
    smaller = next((quant for quant, peak in peaks_by_recipe(family, job) if quant and peak <= most_bytes), None)
    if smaller:
        return f"quant {smaller} would fit (--quant {smaller} on the command line)"
    if job.prompt.references:  # other models are judged without, and most take none
        return "no quant of this model fits; give fewer references, make a smaller picture or use another machine"
    return f"no quant of this model fits; {_largest(most_bytes)}use another machine or a smaller picture"


def _largest(most_bytes: int) -> str:
    """The published model and recipe that fill so much memory best, at the model's own picture size."""
    best = (0, "")
    for manifest in manifests().values():
        if manifest.tensor_shapes != manifest.name or "needs" in manifest.extras:
            continue  # others have the shapes of one that does, or draw nothing from a prompt alone
        with shape_only_folder(manifest) as folder:
            family = open_family(manifest, folder, WeightTransforms())
            for quant, peak in peaks_by_recipe(family, usual_job(manifest, family.size_multiple)):
                if peak <= most_bytes:
                    best = max(best, (peak, f"{manifest.name}{f' with quant {quant}' if quant else ''}"))
    return f"the largest that fits is {best[1]}: choose that, or " if best[1] else ""


def peaks_by_recipe(family: Family[Any], job: Job) -> Iterator[tuple[str | None, int]]:
    """The peak of the weights as they are (None), and under each recipe, q8 first; no recipe packs what is packed."""
    stored = any(component.weights.stored for component in family.components.values())
    yield None, _planned(family, job).peak_bytes
    for name in () if stored else sorted(recipe_names(), reverse=True):
        yield name, _planned(family, job, read_recipe(name, family.name)).peak_bytes


def _planned(family: Family[Any], job: Job, recipe: Recipe | None = None) -> Plan:
    return plan(
        family, job.settings, prompt=job.prompt, recipe=recipe, encodes_image=job.encodes_images, preview=job.preview
    )
