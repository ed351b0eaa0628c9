"""One picture's parameters, resolved and checked: what the user gave, the manifest's defaults for the rest.

In: generate()'s parameters. Out: `Job`s, one a picture, in which nothing is left open. All refusals of bad parameters
stand here, before anything is loaded.
"""

import difflib
import inspect
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RequestError
from ..families.base import Prompt, Settings
from ..hub.manifest import Manifest
from ..image import Picture, fingerprint, open_picture
from ..random import SEED_LIMIT
from ..vision.patches import MAX_ASPECT
from . import options
from .sizes import Asked, size_of

SQUARE = 1024  # pixels, the sides of a picture that stands for the user's
COUNT_LIMIT = 10_000  # pictures of one request
STEPS_LIMIT = 1000  # the models' own count of timesteps
LARGEST_SEED = 2**64 - 1  # torch's, and ComfyUI draws such; of it the generator reads the low 32 bits, there as here
STRENGTH = 0.6  # how much of a picture is changed, where nothing is said


@dataclass(frozen=True)
class Job:
    prompt: Prompt
    negative: Prompt | None  # None: no second branch runs
    settings: Settings
    seed: int
    image: Image.Image | None = None
    strength: float = 1.0
    noise: np.ndarray | None = None
    step_noise: tuple[np.ndarray, ...] | None = None
    blend_seams: int | str | None = None
    notes: tuple[str, ...] = ()

    def guidance(self, kind: str) -> float:
        """As it is given to generate(); `kind` is the manifest's: where the model has no other, the scale between two
        branches is called guidance."""
        return self.settings.cfg if kind == "cfg" else self.settings.guidance

    def record(self, kind: str) -> dict[str, Any]:
        """The parameters as they would be given to generate() again; of pictures and noise, what tells them apart."""
        settings = self.settings
        record: dict[str, Any] = {
            "prompt": self.prompt.text,
            "seed": self.seed,
            "steps": settings.steps,
            "width": settings.width,
            "height": settings.height,
            "guidance": self.guidance(kind),
        }
        if kind != "cfg" and settings.cfg != 1:
            record["true_cfg"] = settings.cfg
        if self.negative is not None:
            record["negative_prompt"] = self.negative.text
        if self.image is not None:
            record |= {"image_sha256": fingerprint(self.image), "strength": self.strength}
        if self.prompt.references:
            record["references_sha256"] = [fingerprint(image) for image in self.prompt.references]
        if self.noise is not None:
            record["noise_sha256"] = fingerprint(self.noise)
        if self.step_noise is not None:
            record["step_noise_sha256"] = [fingerprint(noise) for noise in self.step_noise]
        if self.blend_seams is not None:
            record["blend_seams"] = self.blend_seams
        return record | settings.extras | dict(self.prompt.options)


def make_jobs(
    manifest: Manifest,
    size_multiple: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str | None = None,
    steps: int | None = None,
    width: int | None = None,
    height: int | None = None,
    guidance: float | None = None,
    true_cfg: float | None = None,
    image: Picture | None = None,
    strength: float | None = None,
    noise: np.ndarray | None = None,
    references: Sequence[Picture] | None = None,
    max_sequence_length: int | None = None,
    aspect: str | None = None,
    sampler: str | None = None,
    shift: float | None = None,
    timesteps: Sequence[float] | None = None,
    noise_scale: float | Sequence[float] | None = None,
    noise_clip: float | None = None,
    step_noise: Sequence[np.ndarray] | None = None,
    layout: Sequence[Any] = (),
    keep_original_aspect: bool = False,
    blend_seams: int | str | None = None,
) -> list[Job]:
    """Every prompt with every seed, prompts outermost."""
    opened = open_picture(image) if image is not None else None
    pictures = _references(manifest, () if references is None else references)
    notes: list[str] = []
    given = {"sampler": sampler, "shift": shift, "timesteps": timesteps}
    given |= {"noise_scale": noise_scale, "noise_clip": noise_clip}
    steps, extras = options.sampling(manifest, steps, len(pictures), given, notes)
    asked = Asked(width, height, aspect, keep_original_aspect, opened, pictures)
    extras |= {"keep_original_aspect": True} if keep_original_aspect else {}
    settings = Settings(
        *size_of(manifest, size_multiple, asked, notes),
        steps=_steps(manifest, steps),
        **_guidance(manifest, guidance, true_cfg, negative_prompt, notes),
        extras={"max_sequence_length": _sequence_length(manifest, max_sequence_length), **extras},
    )
    notes += _noise_notes(settings, len(seeds), noise, step_noise, opened)
    chosen = (("layout", boxes),) if (boxes := options.layout_boxes(manifest, layout, len(pictures))) else ()
    negative = _negative(manifest, settings, negative_prompt, pictures, chosen)
    common: dict[str, Any] = {
        "image": opened,
        "strength": _strength(strength, opened),
        "noise": None if noise is None else _array("noise", noise),
        "step_noise": _step_noise(step_noise, settings),
        "blend_seams": options.seam_blend(manifest, blend_seams, size_multiple),
        "notes": tuple(notes),
    }
    return [
        Job(Prompt(_text(prompt), pictures, chosen), negative, settings, seed, **common)
        for prompt in prompts
        for seed in seeds
    ]


def requested(
    manifest: Manifest,
    size_multiple: int,
    /,
    prompt: str | Sequence[str],
    seed: int | Sequence[int] | None = None,
    count: int | None = None,
    **parameters: Any,
) -> list[Job]:
    """The jobs of one request, as generate() takes it."""
    prompts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Iterable) else list(prompt)
    if not prompts:
        raise RequestError("no prompt is given; say what the picture should show.")
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], REQUEST_FIELDS, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(REQUEST_FIELDS)}; and what load() takes."
        raise RequestError(f"there is no parameter '{unknown[0]}'; {hint}")
    parameters = {name: _plain(value) for name, value in parameters.items()}
    options.check_types(parameters)
    return make_jobs(manifest, size_multiple, prompts, seeds_of(seed, count), **parameters)


def seeds_of(seed: int | Sequence[int] | None, count: int | None) -> list[int]:
    """The seeds of a request: those given; or `count` from the one given, or from a fresh one, upwards."""
    if isinstance(seed, Iterable):
        if count is not None:
            raise RequestError(
                "give several seeds or a count, not both: a count means that many seeds from one upwards."
            )
        seeds = [_seed(single) for single in seed]
        if not seeds:
            raise RequestError("seed: the list is empty; give one or more, or leave it out.")
        return seeds
    count = _plain(count)
    if count is not None and (type(count) is not int or not 1 <= count <= COUNT_LIMIT):
        raise RequestError(f"count {count!r}: give a number of pictures from 1 to {COUNT_LIMIT}.")
    first = secrets.randbelow(SEED_LIMIT - COUNT_LIMIT) if seed is None else _seed(seed)
    return [_seed(first + index) for index in range(count or 1)]


def usual_job(manifest: Manifest, size_multiple: int, **parameters: Any) -> Job:
    """A picture as the manifest has it, to plan with. Where the model changes pictures, and none is given, a blank
    square is one."""
    pictures = [Image.new("RGB", (SQUARE, SQUARE))] * manifest.extras.get("references_least", 0)
    return requested(manifest, size_multiple, "a prompt", seed=0, **({"references": pictures} | parameters))[0]


# What generate() and a JSONL job may name beside prompt, seed and count.
PARAMETERS = tuple(
    name
    for name, kind in inspect.signature(make_jobs).parameters.items()
    if kind.kind is inspect.Parameter.KEYWORD_ONLY
)
REQUEST_FIELDS = ("prompt", "seed", "count", "on_step", *PARAMETERS)


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's: records are written as JSON."""
    return value.item() if isinstance(value, np.generic) else value


def _text(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise RequestError(f"prompt {prompt!r}: give text, what the picture should show.")
    if not prompt.strip():
        raise RequestError("the prompt is empty; say what the picture should show.")
    return prompt


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise RequestError(f"seed {seed!r}: give a whole number from 0 to {LARGEST_SEED}.")
    return int(seed)


def _steps(manifest: Manifest, steps: int | None) -> int:
    steps = manifest.defaults.steps if steps is None else steps
    if not 1 <= steps <= STEPS_LIMIT:
        raise RequestError(
            f"steps {steps!r}: give a whole number from 1 to {STEPS_LIMIT}; {manifest.name} uses "
            f"{manifest.defaults.steps}."
        )
    return steps


def _strength(strength: float | None, image: Image.Image | None) -> float:
    if image is None and strength is not None:
        raise RequestError(
            "strength says how much of a picture to change, and no image is given; add image, or drop strength."
        )
    if image is None:
        return 1.0
    strength = STRENGTH if strength is None else strength
    if not 0 < strength <= 1:
        raise RequestError(f"strength {strength}: give a number above 0 (keep the picture) and up to 1 (replace it).")
    return float(strength)


def _noise_notes(
    settings: Settings,
    seeds: int,
    noise: np.ndarray | None,
    step_noise: Sequence[np.ndarray] | None,
    image: Image.Image | None,
) -> list[str]:
    """A word about seeds that change nothing. The flash sampler draws from the seed at every step, and so does the
    autoencoder that a picture to start from goes through."""
    drawn = image is not None or (settings.extras.get("sampler") == "flash" and step_noise is None)
    if noise is None or seeds < 2 or drawn:
        return []
    return [f"the noise is given, so that the pictures of all {seeds} seeds are equal; leave it out, or give one seed"]


def _references(manifest: Manifest, references: Sequence[Picture]) -> tuple[Image.Image, ...]:
    given: Sequence[Any] = references if isinstance(references, list | tuple) else [references]
    if given and not manifest.edits:
        raise RequestError(f"references: {manifest.name} takes none; to start from a picture, give it as image.")
    if len(given) < manifest.extras.get("references_least", 0):
        raise RequestError(
            f"{manifest.name} changes pictures, and none is given; add references (--references on the command line)."
        )
    limit = manifest.extras.get("references_limit")
    if limit is not None and len(given) > limit:
        raise RequestError(f"references: {len(given)} pictures are given, {manifest.name} takes up to {limit}.")
    pictures = tuple(open_picture(reference, "references") for reference in given)
    for width, height in (picture.size for picture in pictures):
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise RequestError(
                f"references: a picture of {width}x{height} is too narrow for {manifest.name}'s eyes: the sides may "
                f"differ {MAX_ASPECT} times at most. Cut out the part that matters."
            )
    return pictures


def _step_noise(noise: Sequence[np.ndarray] | None, settings: Settings) -> tuple[np.ndarray, ...] | None:
    if noise is None:
        return None
    if settings.extras.get("sampler") != "flash":
        raise RequestError("step_noise: only the flash sampler draws noise at every step; leave it out.")
    if len(noise) < settings.steps - 1:
        raise RequestError(
            f"step_noise: {len(noise)} draws are given, {settings.steps} steps need one after each but the last."
        )
    return tuple(_array("step_noise", draw) for draw in noise)


def _array(name: str, noise: Any) -> np.ndarray:
    try:
        return np.asarray(noise, np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name}: give arrays of unit normals ({error}).") from error


def _sequence_length(manifest: Manifest, asked: int | None) -> int:
    limit = manifest.defaults.max_sequence_length
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
    """guidance and cfg: `guidance` is told to the transformer, or is the scale between two branches, as the model has
    it."""
    for name, value in (("guidance", guidance), ("true_cfg", true_cfg)):
        if value is not None and not 0 <= value <= 100:
            raise RequestError(f"{name} {value}: give a number from 0 to 100.")
    if manifest.guidance == "never" and max(guidance or 0, true_cfg or 0) > 1:
        raise RequestError(
            f"{manifest.name} is distilled to run without a second branch, which would spoil its pictures; leave"
            " guidance and true_cfg out, or use the model that it was made from."
        )
    if manifest.guidance == "none" and guidance:
        notes.append(f"{manifest.name} is distilled: it takes no guidance, {guidance} has no effect")
    if manifest.guidance == "cfg":
        if true_cfg is not None:
            raise RequestError(
                f"true_cfg: {manifest.name}'s guidance already is the scale between two branches; use guidance."
            )
        cfg = manifest.defaults.guidance if guidance is None else guidance
        told = 0.0
        if 0 < cfg < 1:
            notes.append(f"guidance {cfg:g} is the same as 1: a second branch runs above 1 only")
    else:
        cfg = 1.0 if true_cfg is None else true_cfg
        told = manifest.defaults.guidance if guidance is None or manifest.guidance == "none" else guidance
    if negative_prompt is not None and cfg <= 1:
        knob = "guidance" if manifest.guidance == "cfg" else "true_cfg"
        mend = "leave it out" if manifest.guidance == "never" else f"set {knob} above 1 (say 4)"
        notes.append(f"the negative prompt has no effect without a second branch; {mend}")
    return {"guidance": float(told), "cfg": float(cfg)}


def _negative(
    manifest: Manifest,
    settings: Settings,
    negative_prompt: str | None,
    pictures: tuple[Image.Image, ...],
    chosen: tuple[tuple[str, Any], ...],
) -> Prompt | None:
    if settings.cfg <= 1:
        return None
    default = manifest.defaults.negative_prompt or ""
    return Prompt(default if negative_prompt is None else negative_prompt, pictures, chosen)
