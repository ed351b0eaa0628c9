"""One picture's parameters, resolved and checked: what the user gave, the manifest's defaults for the rest.

In: generate()'s parameters. Out: `Job`s, one a picture, in which nothing is left open. Bad parameters are refused
here and in the modules of this package that it calls, before anything is loaded.
"""

import itertools
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
from PIL import Image

from ..errors import RequestError
from ..escaping import quoted
from ..families.base import Inputs, Prompt, Settings
from ..families.controls import ControlPicture
from ..families.image_prompts import ImagePrompt
from ..hub.manifest import Manifest
from ..image import fingerprint, to_pixels
from ..masks import Region, drawn_pixels
from ..previews import FAST
from ..random import SEED_LIMIT
from . import options
from .completion import completed
from .controls import Control, open_controls
from .image_prompts import adapters_own, described, negative_images, open_image_prompts
from .inputs import check_needs, noise_array, noise_notes, open_references, step_noise_arrays
from .parameters import (
    DEFAULT_STRENGTH,
    LARGEST_SEED,
    PARAMETERS,
    PICTURE_FIELDS,
    PictureParameters,
    check_names,
    limits,
)
from .regions import Canvas, open_canvas
from .shortcuts import as_asked, cache_rule, guided_shares
from .sizes import Asked, Box, kept_box, size_of

NO_LISTS = (str, bytes, Mapping)  # of prompts: what is one, or no prompt at all
STAND_IN_SIDE = 1024  # pixels, of a picture in the place of the user's
BETWEEN_BRANCHES = ("cfg", "cfg_from_0")  # of the manifests' kinds of guidance: the scale between two branches


@dataclass(frozen=True)
class Job:
    prompt: Prompt
    asked: str  # the prompt as given; the model's may say more (completion.py)
    negative: Prompt | None  # None: no second branch runs
    settings: Settings
    seed: int
    model: str  # the manifest whose rules these are
    image: Image.Image | None = None  # as given, with its transparency
    canvas: Canvas | None = None  # the image as it is drawn on
    strength: float = 1.0
    controls: tuple[Control, ...] = ()
    noise: np.ndarray | None = None
    step_noise: tuple[np.ndarray, ...] | None = None
    blend_seams: int | str | None = None
    image_is_reference: bool = False  # the model needs a reference, and none but the masked image is given
    crop: Box | None = None  # what is kept of the picture made
    preview: str = FAST
    notes: tuple[str, ...] = ()
    upsampler: str | None = None  # that is to write the prompt's caption first, by name or folder
    upsampled_from: str | None = None  # what the prompt is a caption of

    @property
    def lacks_words(self) -> bool:
        """Whether the model is to find them: what its reference shows."""
        return not self.prompt.text.strip() and not any(image.adapter.in_prompt for image in self.prompt.images)

    @property
    def encodes_images(self) -> bool:
        """Whether an encoder reads pictures of it: one to start from, or some to follow."""
        return self.image is not None or bool(self.controls)

    @property
    def region(self) -> Region | None:
        """The part of the image that is drawn; None: all of it."""
        return self.canvas.region((self.settings.width, self.settings.height)) if self.canvas else None

    def inputs(self) -> Inputs:
        """The pictures that it starts from, at its size."""
        size = self.settings.width, self.settings.height
        controls = tuple(
            ControlPicture(
                _centred_pixels(control.drawn_at(size), size),
                control.model,
                control.strength,
                control.kind,
                control.start,
                control.end,
            )
            for control in self.controls
        )
        if self.canvas is None:
            return Inputs(controls=controls)
        if (region := self.region) is None:
            return Inputs(_centred_pixels(self.canvas.picture, size), controls=controls)
        picture, mask = region.drawn_at(size)
        return Inputs(_centred_pixels(picture, size), drawn_pixels(mask), self.image_is_reference, controls)

    def guidance(self, kind: str) -> float:
        """As it is given to generate(); `kind` is the manifest's: where the model has no other, the scale between two
        branches is called guidance."""
        return self.settings.cfg if kind == "cfg" else self.settings.guidance

    def record(self, kind: str) -> dict[str, Any]:
        """The parameters as they would be given to generate() again; of pictures and noise, what tells them apart."""
        values = self._values(kind)
        kept = [row for row in PARAMETERS if row.recorded and values.get(row.name) is not None]
        record = {row.record_key: _hashed(values[row.name]) if row.hashed else values[row.name] for row in kept}
        return record if self.upsampled_from is None else record | {"upsampled_from": self.upsampled_from}

    def captioned(self, caption: str) -> "Job":
        """With what the upsampler has written in place of the prompt."""
        prompt = replace(self.prompt, text=caption)
        return replace(self, prompt=prompt, asked=caption, upsampled_from=self.asked.strip() or None, upsampler=None)

    def _values(self, kind: str) -> dict[str, Any]:
        """By parameter; None where there is none to give again."""
        settings = self.settings
        return {
            "prompt": self.asked,
            "seed": self.seed,
            "steps": settings.steps,
            "width": None if self.crop else settings.width,  # it follows from the reference
            "height": None if self.crop else settings.height,
            "guidance": self.guidance(kind),
            "true_cfg": settings.cfg if kind not in BETWEEN_BRANCHES and settings.cfg != 1 else None,
            "guidance_until": as_asked(settings.guided),
            "cache": settings.cache.threshold if settings.cache else None,
            "negative_prompt": None if self.negative is None else self.negative.text,
            "image": self.image,
            "strength": None if self.image is None else self.strength,
            **(self.canvas.values if self.canvas else {}),
            "control": self.controls or None,
            **_by_parameter(self.prompt.images),
            "references": None if self.image_is_reference else self.prompt.references or None,
            "noise": self.noise,
            "step_noise": self.step_noise,
            "blend_seams": self.blend_seams,
            **settings.extras,
            **dict(self.prompt.options),
        }


def _centred_pixels(picture: Image.Image, size: tuple[int, int]) -> mx.array:
    """[H, W, 3] in -1..1"""
    return mx.array(to_pixels(picture, size) * 2 - 1)


def _hashed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_hashed(each) for each in value]
    if isinstance(value, ImagePrompt):
        return described(value)
    return value.described() if isinstance(value, Control) else fingerprint(value)


def _by_parameter(images: Sequence[ImagePrompt]) -> dict[str, tuple[ImagePrompt, ...]]:
    parameters = dict.fromkeys(image.adapter.parameter for image in images)
    return {name: tuple(image for image in images if image.adapter.parameter == name) for name in parameters}


def resolve(
    manifest: Manifest,
    size_multiple: int,
    /,
    prompt: str | Sequence[str],
    seed: int | Sequence[int] | None = None,
    count: int | None = None,
    **parameters: Any,
) -> list[Job]:
    """The jobs of one request, as generate() takes it: every prompt with every seed, prompts outermost."""
    is_one = isinstance(prompt, NO_LISTS) or not isinstance(prompt, Iterable)
    prompts: list[Any] = [prompt] if is_one else list(prompt)
    if not prompts:
        raise RequestError("no prompt is given; say what the picture should show.")
    check_names(parameters, PICTURE_FIELDS)
    given = {name: _plain(value) for name, value in parameters.items() if value is not None}
    options.check_types(given)
    return _jobs(manifest, size_multiple, prompts, seeds_of(seed, count), cast(PictureParameters, given))


def _jobs(
    manifest: Manifest, size_multiple: int, prompts: Sequence[str], seeds: Sequence[int], given: PictureParameters
) -> list[Job]:
    noise, step_noise = given.get("noise"), given.get("step_noise")
    negative_prompt, references = given.get("negative_prompt"), given.get("references")
    size, keep_alpha = (given.get("width"), given.get("height")), options.takes(manifest, "transparent")
    notes: list[str] = []
    image, canvas = open_canvas(given, size, keep_alpha, notes) or (None, None)
    masked = canvas is not None and canvas.mask is not None
    references = () if references is None else references
    is_reference = len(references) == 0 if isinstance(references, list | tuple) else False
    is_reference &= masked and "image_is_reference" in manifest.extras
    if canvas and is_reference:
        pictures = open_references(manifest, (canvas.picture,), notes, parameter="image")
    else:
        pictures = open_references(manifest, references, notes)
    controls = open_controls(given.get("control"), notes)
    check_needs(manifest, canvas is not None, masked, len(controls))
    images = open_image_prompts(manifest, given, given.get("true_cfg") or 1.0, notes)
    keep_aspect = bool(given.get("keep_original_aspect"))
    whole = None if canvas is None or "padding" in canvas.values else canvas.picture
    fixed = canvas is not None and not canvas.values.keys().isdisjoint(("expand", "place"))  # no pixel is resampled
    asked = Asked(*size, given.get("aspect"), keep_aspect, whole, masked, fixed, pictures)
    settings = _settings(manifest, size_multiple, given, asked, adapters_own(images), notes)
    notes += noise_notes(settings, len(seeds), noise, step_noise, image)
    boxes = options.layout_boxes(manifest, given.get("layout"), len(pictures))
    if boxes and keep_aspect:
        notes.append("layout has no effect with keep_original_aspect: the one reference has the whole picture")
    prompt_options = (("layout", boxes),) if boxes else ()
    negative = None  # no second branch runs
    if settings.cfg > 1:
        text = manifest.defaults.negative_prompt or "" if negative_prompt is None else negative_prompt
        negative = Prompt(text, pictures, prompt_options, negative_images(images))
    common: dict[str, Any] = {
        "model": manifest.name,
        "negative": negative,
        "settings": settings,
        "image": image,
        "canvas": canvas,
        "image_is_reference": is_reference,
        "strength": _strength(manifest, given.get("strength"), canvas),
        "controls": controls,
        "noise": None if noise is None else noise_array("noise", noise),
        "step_noise": step_noise_arrays(step_noise, settings),
        "blend_seams": options.seam_blend(manifest, given.get("blend_seams"), size_multiple),
        "upsampler": options.upsampler(manifest, given.get("upsample")),
        "preview": options.preview(manifest, given.get("preview")),
        "crop": kept_box(manifest, size_multiple, asked) if canvas is None else None,
    }
    jobs = []
    for asked_prompt, seed in itertools.product(prompts, seeds):
        text, said = completed(manifest, _text(manifest, asked_prompt, images), seed)
        prompt = Prompt(text, pictures, prompt_options, images)
        jobs.append(Job(prompt, asked_prompt, seed=seed, notes=(*notes, *said), **common))
    return jobs


def _settings(
    manifest: Manifest,
    size_multiple: int,
    given: PictureParameters,
    asked: Asked,
    adapters: Mapping[str, Any],
    notes: list[str],
) -> Settings:
    """`adapters`: what those of the image prompts say in the manifest's place."""
    steps, extras = options.sampling(manifest, given.get("steps"), len(asked.references), given, notes)
    steps = _steps(manifest, steps)
    embedded = adapters.get("guidance") if manifest.guidance == "embedded" else None
    guidance = _guidance(
        manifest, given.get("guidance", embedded), given.get("true_cfg"), given.get("negative_prompt"), notes
    )
    length = _sequence_length(manifest, given.get("max_sequence_length"), adapters)
    aspect = {"keep_original_aspect": True} if asked.keep_original_aspect else {}
    layers = options.layers(manifest, given.get("layers"))
    return Settings(
        *size_of(manifest, size_multiple, asked, notes),
        steps=steps,
        **guidance,
        guided=guided_shares(given.get("guidance_until"), guidance["cfg"], notes),
        cache=cache_rule(manifest, given.get("cache"), steps, notes),
        extras={"max_sequence_length": length, **extras, **aspect, **options.switches(manifest, given), **layers},
    )


def is_single(prompt: object, seed: object, count: int | None) -> bool:
    """Whether a request gives one result, or a list of them."""
    return isinstance(prompt, str) and count is None and not isinstance(seed, Iterable)


def seeds_of(seed: int | Sequence[int] | None, count: int | None) -> list[int]:
    """The seeds of a request: those given; or `count` from the one given, or from a fresh one, upwards."""
    if isinstance(seed, Iterable):
        if count is not None:
            raise RequestError("give several seeds or a count, not both: a count is that many seeds from one upwards.")
        seeds = [_seed(single) for single in seed]
        if not seeds:
            raise RequestError("seed: the list is empty; give one or more, or leave it out.")
        return seeds
    count = _plain(count)
    low, high = map(int, limits("count"))
    if count is not None and (type(count) is not int or not low <= count <= high):
        raise RequestError(f"count {quoted(count)}: give a number of pictures from {low} to {high}.")
    first = secrets.randbelow(SEED_LIMIT - high) if seed is None else _seed(seed)
    return [_seed(first + index) for index in range(count or 1)]


def usual_job(manifest: Manifest, size_multiple: int, **parameters: Any) -> Job:
    """The manifest's usual picture, to plan with; a picture that the model needs and is not given is blank."""
    blank, needs = Image.new("RGB", (STAND_IN_SIDE, STAND_IN_SIDE)), manifest.extras.get("needs", ())
    given: dict[str, Any] = {"references": [blank] * manifest.extras.get("references_least", 0)}
    given |= {"image": blank, "mask_box": (0, 0, STAND_IN_SIDE, STAND_IN_SIDE)} if "mask" in needs else {}
    given |= {"control": blank} if "control" in needs else {}
    return resolve(manifest, size_multiple, "a prompt", seed=0, **(given | parameters))[0]


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's: records are written as JSON."""
    return value.item() if isinstance(value, np.generic) else value


def _text(manifest: Manifest, prompt: str, images: Sequence[ImagePrompt] = ()) -> str:
    """`images`: those that stand in the prompt may be all of it."""
    if not isinstance(prompt, str):
        raise RequestError(f"prompt {quoted(prompt)}: give text, what the picture should show.")
    if not prompt.strip() and not any(image.adapter.in_prompt for image in images) and not describes(manifest):
        raise RequestError("the prompt is empty; say what the picture should show.")
    return prompt


def describes(manifest: Manifest) -> bool:
    """Whether the model finds words for a picture where none are given."""
    return options.takes(manifest, "layers")


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise RequestError(f"seed {quoted(seed)}: give a whole number from 0 to {LARGEST_SEED}.")
    return int(seed)


def _steps(manifest: Manifest, steps: int | None) -> int:
    steps = manifest.defaults.steps if steps is None else steps
    low, high = limits("steps")
    if not low <= steps <= high:
        raise RequestError(
            f"steps {quoted(steps)}: give a whole number from {low} to {high}; {manifest.name} uses "
            f"{manifest.defaults.steps}."
        )
    return steps


def _strength(manifest: Manifest, strength: float | None, canvas: Canvas | None) -> float:
    if canvas is None and strength is not None:
        raise RequestError(
            "strength says how much of a picture to change, and no image is given; add image, or drop strength."
        )
    if canvas is None:
        return 1.0
    usual = 1.0 if canvas.hidden or "mask" in manifest.extras.get("needs", ()) else DEFAULT_STRENGTH
    strength = usual if strength is None else strength
    low, high = limits("strength")
    if not low < strength <= high:
        raise RequestError(f"strength {strength}: give a number above {low} (keep it) and up to {high} (replace it).")
    return float(strength)


def _sequence_length(manifest: Manifest, asked: int | None, adapters: Mapping[str, Any]) -> int:
    limit: int = adapters.get("max_sequence_length", manifest.defaults.max_sequence_length)
    if asked is None:
        return limit
    if manifest.extras.get("whole_prompt") and asked != limit:  # that one stands in every picture's record
        raise RequestError(f"max_sequence_length: {manifest.name} reads the whole prompt; leave it out.")
    if not 1 <= asked <= limit:
        raise RequestError(f"max_sequence_length {asked}: {manifest.name} reads 1 to {limit} tokens.")
    return asked


def _guidance(
    manifest: Manifest, guidance: float | None, true_cfg: float | None, negative_prompt: str | None, notes: list[str]
) -> dict[str, Any]:
    """guidance and cfg: `guidance` is a number that the transformer reads, or the scale between two branches."""
    for name, value in (("guidance", guidance), ("true_cfg", true_cfg)):
        low, high = limits(name)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} {value}: give a number from {low} to {high}.")
    if manifest.guidance == "never" and max(guidance or 0, true_cfg or 0) > 1:
        raise RequestError(
            f"{manifest.name} is distilled to run without a second branch, which would spoil its pictures; leave"
            " guidance and true_cfg out, or use the model that it was made from."
        )
    if manifest.guidance == "none" and guidance:
        notes.append(f"{manifest.name} is distilled: it takes no guidance, {guidance} has no effect")
    if manifest.guidance in BETWEEN_BRANCHES:
        if true_cfg is not None:
            raise RequestError(f"true_cfg: {manifest.name}'s guidance is the scale between two branches; use guidance.")
        scale = manifest.defaults.guidance if guidance is None else guidance
        embedded, cfg = (0.0, scale) if manifest.guidance == "cfg" else (scale, 1 + scale)
        if 0 < cfg < 1:
            notes.append(f"guidance {cfg:g} is the same as 1: a second branch runs above 1 only")
    else:
        cfg = 1.0 if true_cfg is None else true_cfg
        embedded = manifest.defaults.guidance if guidance is None or manifest.guidance == "none" else guidance
    if negative_prompt is not None and cfg <= 1:
        knob = "guidance" if manifest.guidance in BETWEEN_BRANCHES else "true_cfg"
        least = 0 if manifest.guidance == "cfg_from_0" else 1
        remedy = "leave it out" if manifest.guidance == "never" else f"set {knob} above {least} (say 4)"
        notes.append(f"the negative prompt has no effect without a second branch; {remedy}")
    return {"guidance": float(embedded), "cfg": float(cfg)}
