"""Pictures that go with the prompt: which adapter reads each, and how much it counts.

In: what the user gave as `redux` and `ip_adapter`. Out: `ImagePrompt`s, checked as far as that can be done without
their adapters.
Must not know: adapters, how they are opened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..errors import RequestError
from ..families.image_prompts import AdapterSource, ImagePrompt
from ..hub.abilities import able, networks, networks_of
from ..hub.manifest import Manifest
from ..image import fingerprint, open_picture
from ..paths import expanded
from .entries import EntryForm

FIELDS = ("picture", "scale", "model")
FORMS = {name: EntryForm(name, FIELDS) for name in ("redux", "ip_adapter")}  # by parameter
SCALE_LIMIT = 10.0
BLACK_SIDE = 16  # a black picture's size makes no difference


def open_image_prompts(
    manifest: Manifest, given: Mapping[str, Any], cfg: float, notes: list[str]
) -> tuple[ImagePrompt, ...]:
    """Of all parameters that give some. `cfg`: the scale between two branches."""
    images = []
    for parameter, form in FORMS.items():
        entries = form.entries(given.get(parameter))
        if entries and not networks_of(manifest, parameter):
            raise RequestError(
                f"{parameter}: {manifest.name} takes no such pictures. Models that do: {able(parameter, manifest)}."
            )
        for entry in entries:
            usual = next(iter(networks(parameter)))
            picture = open_picture(entry["picture"], parameter, notes=notes)
            scale = form.number("scale", entry.get("scale", 1.0), 0, SCALE_LIMIT)
            source = AdapterSource(parameter, form.text("model", entry.get("model")) or usual)
            images.append(ImagePrompt(picture, scale, source))
    if cfg > 1 and any(image.adapter.in_prompt for image in images):
        raise RequestError(
            f"{images[0].adapter.parameter}: the pictures stand in the prompt, and a negative prompt has none; leave "
            "true_cfg out."
        )
    return tuple(images)


def negative_images(images: Sequence[ImagePrompt]) -> tuple[ImagePrompt, ...]:
    """What a negative prompt has of them: as in diffusers, black pictures to look at."""
    black = Image.new("RGB", (BLACK_SIDE, BLACK_SIDE))
    return tuple(replace(image, picture=black) for image in images if not image.adapter.in_prompt)


def image_prompt_text(entry: Mapping[str, Any]) -> str:
    """What `parse_image_prompt` takes apart."""
    return f"{entry['picture']}:{entry['scale']:g}:{entry['model']}"


def parse_image_prompt(text: str) -> dict[str, Any]:
    """PICTURE[:SCALE[:MODEL]] of the command line."""
    if expanded(text).exists():  # a name may hold a colon
        return {"picture": text}
    return {name: part for name, part in zip(FIELDS, text.split(":", len(FIELDS) - 1), strict=False) if part}


def described(image: ImagePrompt) -> dict[str, Any]:
    """For records: the picture by what tells it apart."""
    return {"sha256": fingerprint(image.picture), "scale": image.scale, "model": image.adapter.name}


def adapters_own(images: tuple[ImagePrompt, ...]) -> dict[str, Any]:
    """What the adapters say of guidance and of the prompt's length, by the first picture's."""
    if not images:
        return {}
    known = networks(images[0].adapter.parameter)
    manifest = known.get(images[0].adapter.name) or next(iter(known.values()))
    own: dict[str, Any] = manifest.extras.get("prompt", {})
    return own
