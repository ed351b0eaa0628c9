"""Parameters that only some models take, resolved and checked: the sampler's numbers, layout boxes, seams.

In: what the user gave, and the manifest's [sampling] table. Out: plain values for `Settings.extras`, `Prompt.options`
and `Job`. A model whose manifest has no such table does not take the parameter, and says so.
"""

import itertools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import RequestError
from ..escaping import quoted
from ..families import family_spec
from ..hub.abilities import able, networks, networks_of
from ..hub.manifest import Manifest
from ..hub.networks import network_to_fetch
from ..image import Box
from ..previews import FAST, FULL, TINY, tiny_file
from .kinds import TEXT
from .parameters import PARAMETERS, SAMPLING_FIELDS, limits

SAMPLERS = ("unipc", "flow_match", "flash")
ADAPTIVE = "adaptive"
SEAM_RADIUS_LIMIT = 8
# Under which upstream's files have their boxes, and each its numbers; these are shares, or hundredths.
LAYOUT_KEYS, BOX_KEYS = ("layout_bboxes", "bboxes", "boxes", "bbox_list"), ("bbox", "box")
PERCENT = 100.0
SMALLEST_PERCENT = 2.0  # a box that ends before is a slip in shares, not one of 2 % of the picture


def check_types(given: Mapping[str, Any]) -> None:
    """Refuses values of another kind than a parameter takes; None is none given."""
    for row in PARAMETERS:
        value = given.get(row.name)
        if value is not None and not row.kind.accepts(value):
            meaning = f" ({row.help})" if row.kind is TEXT else ""  # which text
            raise RequestError(f"{row.name} {quoted(value)}: give {row.kind.description}{meaning}.")


def check_callable(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise RequestError(f"{name} is {quoted(value)}: give a function.")


def sampling(
    manifest: Manifest, steps: int | None, references: int, given: Mapping[str, Any], notes: list[str]
) -> tuple[int | None, dict[str, Any]]:
    """The number of steps, and sampler, shift, timesteps, noise_scale and noise_clip: as given, else the manifest's."""
    table = manifest.extras.get("sampling")
    asked = {name: given[name] for name in SAMPLING_FIELDS if given.get(name) is not None}
    if len(asked.get("timesteps", [0])) == 0:
        del asked["timesteps"]
    if table is None:
        own = takes(manifest, "shift") and "shift" in asked
        extras: dict[str, Any] = {"shift": _number("shift", asked.pop("shift"))} if own else {}
        if asked:
            raise RequestError(
                f"{', '.join(asked)}: {manifest.name} has one sampler, whose numbers are fixed; leave them out."
            )
        return steps, extras
    special = table.get("one_reference", {}) if references == 1 else {}
    table = {"sampler": manifest.defaults.sampler, "noise_clip": 0.0, "timesteps": (), **table, **special}
    sampler = asked.get("sampler", table["sampler"])
    if sampler not in SAMPLERS:
        raise RequestError(f"sampler {quoted(sampler)}: {manifest.name} has {', '.join(SAMPLERS)}.")
    if "noise_clip" in asked and sampler != "flash":
        notes.append(f"noise_clip has no effect: the {sampler} sampler draws no noise of its own")
    timesteps = _timesteps(asked["timesteps"], steps) if "timesteps" in asked else ()
    if not timesteps and sampler != "unipc" and "shift" not in asked:  # UniPC, and a shift, space the steps themselves
        timesteps = _resampled(table["timesteps"], steps)
    extras = {
        "sampler": sampler,
        "shift": _number("shift", asked.get("shift", table["shift"])),
        "noise_scale": _noise_scale(asked.get("noise_scale", table["noise_scale"])),
    }
    if timesteps:
        extras["timesteps"] = timesteps
    if sampler == "flash":  # in standard deviations of a draw; 0 is none
        extras["noise_clip"] = _number("noise_clip", asked.get("noise_clip", table["noise_clip"]))
    return len(timesteps) or steps, extras


def _number(name: str, value: Any) -> float:
    low, high = limits(name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
        raise RequestError(f"{name} {quoted(value)}: give a number from {low:g} to {high:g}.")
    return float(value)


def _noise_scale(value: Any) -> tuple[float, float]:
    """One number, or the first and the last step's."""
    given = value if isinstance(value, list | tuple) else (value,)
    if len(given) not in (1, 2):
        raise RequestError(
            f"noise_scale {quoted(value)}: give one number, or two: the first and the last step's; the steps between "
            "follow."
        )
    return _number("noise_scale", given[0]), _number("noise_scale", given[-1])


def _timesteps(values: Any, steps: int | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    falling = all(first > second for first, second in itertools.pairwise(numbers))
    if not falling or not numbers or numbers[-1] <= 0 or numbers[0] >= 1000:
        raise RequestError(f"timesteps {values!r}: give falling numbers below 1000 and above 0, one a step.")
    if steps is not None and steps != len(numbers):
        raise RequestError(f"steps {steps}: {len(numbers)} timesteps are given, one a step; leave one of the two out.")
    return numbers


def _resampled(fixed: Sequence[float], steps: int | None) -> tuple[float, ...]:
    """A distilled model's own timesteps; for another number of steps, evenly picked between them."""
    if not fixed or steps is None or steps == len(fixed):
        return tuple(map(float, fixed))
    low, high = limits("steps")
    if not low <= steps <= high:
        return ()  # refused with all other bad steps
    places = np.linspace(0, len(fixed) - 1, steps)
    return tuple(np.interp(places, range(len(fixed)), fixed).tolist())


def upsampler(manifest: Manifest, asked: bool | str | None) -> str | None:
    """The name or folder of what is to write the prompt's caption; None: nothing."""
    if not asked:
        return None
    known = networks_of(manifest, "upsample")
    if not known:
        families = {name for network in networks("upsample").values() for name in network.families}
        titles = ", ".join(sorted(family_spec(name).title for name in families))
        raise RequestError(
            f"upsample: {manifest.name} has no prompt upsampler ({titles} has); write the long prompt yourself."
        )
    name = known[0] if asked is True else str(asked)
    network_to_fetch(name, manifest, "upsample")  # a misspelt one is refused before anything is downloaded
    return name


def layout_boxes(manifest: Manifest, layout: Any, references: int) -> tuple[Box, ...]:
    """Where the references go, in order: boxes [x1, x2, y1, y2] in shares or hundredths, or {"bbox": …}."""
    if not layout:
        return ()
    if not takes(manifest, "layout"):
        raise RequestError(f"layout: {manifest.name} takes no boxes.")
    if not references:
        raise RequestError("layout says where reference pictures go, and none is given; add references.")
    items = _listed(layout, LAYOUT_KEYS)
    if not isinstance(items, list | tuple):
        raise RequestError(f"layout {layout!r}: give a list of boxes, each [x1, x2, y1, y2] between 0 and 1.")
    return tuple(_box(_listed(item, BOX_KEYS)) for item in items)


def _listed(value: Any, keys: Sequence[str]) -> Any:
    """What stands under the first of the keys; the value itself where it is no mapping."""
    if not isinstance(value, Mapping):
        return value
    return next((value[key] for key in keys if key in value), None)


def _box(box: Any) -> Box:
    try:
        x1, x2, y1, y2 = (float(number) for number in box)
    except (TypeError, ValueError):
        raise RequestError(f"layout box {box!r}: give four numbers x1, x2, y1, y2 between 0 and 1.") from None
    if SMALLEST_PERCENT < max(x1, x2, y1, y2) <= PERCENT:
        x1, x2, y1, y2 = (number / PERCENT for number in (x1, x2, y1, y2))
    if not all(0 <= number <= 1 for number in (x1, x2, y1, y2)):  # NaN is outside as well
        raise RequestError(
            f"layout box {list(box)}: a part of it lies outside the picture; all numbers are between 0 and 1, or "
            "between 0 and 100."
        )
    if x1 >= x2 or y1 >= y2:
        raise RequestError(
            f"layout box {list(box)}: it is reversed or empty; the order is x1, x2, y1, y2, the smaller first."
        )
    return x1, x2, y1, y2


def switches(manifest: Manifest, given: Mapping[str, Any]) -> dict[str, bool]:
    """Those of some models that are on: an alpha, and a guided velocity no longer than the prompt's own."""
    refused = {
        "cfg_normalization": f"{manifest.name} does not take it; leave it out.",
        "transparent": f"{manifest.name}'s pictures have no alpha; leave it out, or use qwen-image-2.1.",
    }
    wanted = [name for name in refused if given.get(name)]
    for name in wanted:
        if not takes(manifest, name):
            raise RequestError(f"{name}: {refused[name]}")
    return dict.fromkeys(wanted, True)


def preview(manifest: Manifest, kind: str | None) -> str:
    if kind not in (None, FAST, TINY, FULL):
        raise RequestError(f"preview {kind!r}: give {FAST}, {TINY} or {FULL}.")
    if kind == TINY:
        tiny_file(manifest)  # refused before anything is drawn
    return kind or FAST


def takes(manifest: Manifest, parameter: str) -> bool:
    """Whether a model takes a parameter that only some do."""
    return parameter in manifest.extras.get("takes", ())


def layers(manifest: Manifest, count: int | None) -> dict[str, Any]:
    """How many layers a picture is taken apart into; nothing for models that make none."""
    if not takes(manifest, "layers"):
        if count is not None:
            raise RequestError(
                f"layers: {manifest.name} makes one picture; leave it out, or use a model that takes a picture apart: "
                f"{able('layers', manifest)}."
            )
        return {}
    low, high = map(int, limits("layers"))
    count = int(manifest.extras["layers"]) if count is None else count
    if not low <= count <= high:
        raise RequestError(f"layers {count}: give a number from {low} to {high}; each takes as long as a picture.")
    return {"layers": count}


def seam_blend(manifest: Manifest, blend: int | str | None, patch: int) -> int | str | None:
    """How many pixels on each side of a patch's border are blended, or `adaptive`; None: nothing is."""
    if blend in (None, 0, False):
        return None
    if not takes(manifest, "blend_seams"):
        raise RequestError(f"blend_seams: {manifest.name}'s pictures have no patch borders to blend.")
    limit = min(SEAM_RADIUS_LIMIT, patch // 2)  # the bands of two borders must not meet
    if blend != ADAPTIVE and (isinstance(blend, bool) or not isinstance(blend, int) or not 1 <= blend <= limit):
        raise RequestError(
            f"blend_seams {blend!r}: {manifest.name} is put together from patches of {patch} pixels; give a radius "
            f"from 1 to {limit} pixels, or '{ADAPTIVE}'."
        )
    return blend
