"""Pictures and arrays that a request brings: opened, counted and checked.

In: what the user gave, and the manifest. Out: PIL images and float32 arrays for `Job`s.
Must not know: files of arrays, how a picture is encoded.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..errors import RequestError
from ..families.base import Settings
from ..hub.abilities import abilities, able
from ..hub.manifest import Manifest
from ..image import Picture, open_picture
from ..masks import sampled
from ..vision.patches import MAX_ASPECT
from . import options


def open_references(
    manifest: Manifest, references: Sequence[Picture], notes: list[str] | None = None, parameter: str = "references"
) -> tuple[Image.Image, ...]:
    """`parameter`: as what they were given: a masked image may be the reference."""
    given: Sequence[Any] = references if isinstance(references, list | tuple) else [references]
    if given and not manifest.edits:
        raise RequestError(
            f"references: {manifest.name} takes none; to start from a picture, give it as image. Models that take "
            f"them: {able('references', manifest)}."
        )
    if len(given) < manifest.extras.get("references_least", 0):
        raise RequestError(
            f"{manifest.name} changes pictures, and none is given; add references (--references on the command line)."
        )
    limit = manifest.extras.get("references_limit")
    if limit is not None and len(given) > limit:
        raise RequestError(f"references: {len(given)} pictures are given, {manifest.name} takes up to {limit}.")
    alpha = options.takes(manifest, "transparent") or options.takes(manifest, "layers")
    pictures = tuple(open_picture(reference, "references", alpha, notes) for reference in given)
    for picture in pictures:
        _check_shape(manifest, picture.size, parameter)
    return pictures


def _check_shape(manifest: Manifest, size: tuple[int, int], parameter: str) -> None:
    limits = manifest.extras.get("references", {})
    least, ratio = limits.get("least_side", 1), limits.get("largest_ratio", MAX_ASPECT)
    picture = f"{parameter}: a picture of {size[0]}x{size[1]}"
    reader = manifest.name + ("" if parameter == "references" else ", which reads a masked picture as a reference")
    if min(size) < least:
        raise RequestError(
            f"{picture} is too small for {reader}: both sides must be {least} pixels or more. Make it larger."
        )
    if max(size) > ratio * min(size):
        raise RequestError(
            f"{picture} is too narrow for {reader}: the sides may differ {ratio} times at most. Cut out the part that "
            "matters."
        )


def check_needs(manifest: Manifest, drawn_on: bool, masked: bool, controls: int) -> None:
    """Raises where the model is made for pictures that are not given, or for others than are."""
    if drawn_on and "image" not in abilities(manifest):
        raise RequestError(
            f"image: {manifest.name} starts from noise alone; give the picture as references, or use "
            f"{able('image', manifest)}."
        )
    needs = manifest.extras.get("needs", ())
    if "mask" in needs and not masked:
        raise RequestError(
            f"{manifest.name} draws a part of a picture; give image with mask, mask_box, expand or place."
        )
    if "control" in needs and not controls:
        raise RequestError(f"{manifest.name} follows a picture, and none is given; add control.")
    if controls and "control" not in abilities(manifest):
        raise RequestError(
            f"control: {manifest.name} takes no control pictures. Models that do: {able('control', manifest)}."
        )


def step_noise_arrays(noise: Sequence[np.ndarray] | None, settings: Settings) -> tuple[np.ndarray, ...] | None:
    if noise is None:
        return None
    if settings.extras.get("sampler") != "flash":
        raise RequestError("step_noise: only the flash sampler draws noise at every step; leave it out.")
    if len(noise) < settings.steps - 1:
        raise RequestError(
            f"step_noise: {len(noise)} draws are given, {settings.steps} steps need one after each but the last."
        )
    return tuple(noise_array("step_noise", draw) for draw in noise)


def noise_array(name: str, noise: Any) -> np.ndarray:
    try:
        return np.asarray(noise, np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name}: give arrays of unit normals ({error}).") from error


def noise_notes(
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


def check_noise(noise: np.ndarray | None, step_noise: Sequence[np.ndarray] | None, shape: tuple[int, ...]) -> None:
    """Raises for noise that does not fit the picture, whose shape only the open model knows."""
    given = [("noise", noise), *(("step_noise", draw) for draw in step_noise or ())]
    for name, array in given:
        if array is None:
            continue
        if array.shape != shape:
            raise RequestError(f"{name} has the shape {array.shape}; this picture needs {shape} float32 unit normals.")
        if not np.isfinite(array).all():
            raise RequestError(f"{name} holds values that are no numbers (NaN or infinite); it must be unit normals.")


def check_mask(mask: mx.array | None, shape: tuple[int, ...]) -> None:
    """Raises for a mask that none of the places is in at which the model draws."""
    if mask is not None and not sampled(mask, (shape[2], shape[3])).any():
        raise RequestError(
            f"the mask is so small that it lies between the {shape[3]}x{shape[2]} places at which the model draws; "
            "make it larger, or give padding, which draws the part around it at full size."
        )
