"""Which part of the input picture is drawn: masks, boxes, transparency, and margins around the picture.

In: what the user gave. Out: a `Canvas`, the picture with its mask, and from it the `Region` of a job.
Must not know: models, how a mask is kept in the loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from ..errors import RequestError
from ..escaping import quoted
from ..image import Picture, on_white, open_with_alpha, resized
from ..masks import DRAWN, HALF, Crop, Margins, Region, Size, box_mask, crop_around, expanded, greys
from .parameters import limits
from .sizes import SIDE_LIMIT

SHAPE_TOLERANCE = 0.02  # by which a mask's proportions may differ from the picture's: rounding of small sizes
NEEDS_IMAGE = ("mask", "mask_box", "padding", "expand", "place")
PLACES = ("left", "center", "right", "top", "bottom")


@dataclass(frozen=True)
class Canvas:
    """The input picture as it will be drawn on, and what is drawn of it (None: all)."""

    picture: Image.Image  # RGB, or RGBA for models that read alpha
    mask: Image.Image | None = None  # in the picture's size where it is cropped or expanded, else as it was given
    values: Mapping[str, Any] = field(default_factory=dict)  # by parameter, for records
    hidden: bool = False  # what is drawn has no pixels of its own yet: it is outside the picture, or transparent

    def region(self, size: Size) -> Region | None:
        """`size`: of the picture that the model makes."""
        if self.mask is None:
            return None
        padding = self.values.get("padding")
        crop: Crop | None = None if padding is None else crop_around(self.mask, size, padding)
        return Region(self.picture, self.mask, crop)


def open_canvas(
    given: Mapping[str, Any], size: tuple[int | None, int | None], keep_alpha: bool, notes: list[str]
) -> tuple[Image.Image, Canvas] | None:
    """The input picture as given, with its transparency, and the canvas. `size`: width and height as asked for.
    `keep_alpha`: the model reads transparency, which for others is a mask."""
    named = [name for name in NEEDS_IMAGE if given.get(name) is not None]
    if given.get("image") is None:
        if named:
            raise RequestError(f"{named[0]} says which part of a picture to draw, and no image is given; add image.")
        return None
    picture, opaque = open_with_alpha(given["image"], notes=notes)
    if keep_alpha and opaque is not None:
        picture.putalpha(opaque)
        opaque = None
    mask, values = _mask(given, picture.size, opaque)
    margins = _margins(given, picture.size, size)
    if margins is not None:
        values |= {"expand": _written(margins)} if given.get("expand") is not None else {"place": list(margins[:2])}
    if given.get("padding") is not None:
        values["padding"] = _padding(given["padding"], masked=mask is not None or margins is not None)
    is_mask = opaque is not None and not {"mask", "mask_box"} & values.keys()  # what is transparent
    hidden = margins is not None or is_mask
    original = picture.copy()
    if opaque is not None:
        original.putalpha(opaque)
        picture = picture if is_mask else on_white(picture, opaque)
        notes.append(f"image: what is transparent {'is drawn' if is_mask else 'counts as white: a mask is given'}")
    if mask is not None and (margins is not None or "padding" in values):
        mask = greys(resized(mask, picture.size))
    if margins is not None:
        picture, mask = expanded(picture, mask, margins)
    return original, Canvas(picture, mask, values, hidden)


def _mask(
    given: Mapping[str, Any], size: Size, opaque: Image.Image | None
) -> tuple[Image.Image | None, dict[str, Any]]:
    """The mask, wherever it comes from, in the picture's proportions, and the parameter that it comes from."""
    mask, box = given.get("mask"), given.get("mask_box")
    if mask is not None and box is not None:
        raise RequestError("mask and mask_box both say which part to draw; give one of the two.")
    if box is not None:
        corners = _box(box, size)
        return box_mask(size, Crop(*corners)), {"mask_box": corners}
    if mask is None:
        return (None if opaque is None else ImageChops.invert(opaque)), {}
    opened = open_mask(mask)
    if abs(opened.width * size[1] / (opened.height * size[0]) - 1) > SHAPE_TOLERANCE:
        raise RequestError(
            f"the mask is {opened.width}x{opened.height}, and the picture {size[0]}x{size[1]}: it has another shape, "
            "so that it is not clear where it belongs. Give a mask in the picture's proportions."
        )
    if np.asarray(greys(opened)).max() < HALF:
        raise RequestError(
            "the mask has nothing white: no part would be drawn, and the picture would come back as it is. White is "
            f"drawn, black is kept, greys count from {HALF} of {DRAWN}; invert it if it is the other way round."
        )
    return opened, {"mask": opened}


def open_mask(mask: Picture) -> Image.Image:
    """What is transparent in the mask counts as black. An array may have one channel, and be of truth values."""
    if isinstance(mask, np.ndarray):
        if mask.ndim not in (2, 3):
            raise RequestError(
                "mask: an array must have the shape [height, width], or [height, width, 3 or 4], this one has "
                f"{mask.shape}."
            )
        levels = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
        mask = np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels
    picture, opaque = open_with_alpha(mask, "mask")
    return picture if opaque is None else ImageChops.multiply(greys(picture), opaque)


def _box(box: Any, size: Size) -> list[int]:
    corners = _whole_numbers("mask_box", box, 4, "x1,y1,x2,y2 in pixels of the image, such as 10,20,200,150")
    left, top, right, bottom = corners
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise RequestError(
            f"mask_box {','.join(map(str, corners))}: it must lie in the picture of {size[0]}x{size[1]}, with the left "
            "and upper corner first."
        )
    return corners


def _padding(padding: int, masked: bool) -> int:
    low, high = limits("padding")
    if not masked:
        raise RequestError("padding is what to see around a mask, and none is given; add mask or mask_box.")
    if not low <= padding <= high:
        raise RequestError(f"padding {padding}: give a number of pixels from {low:g} to {high:g}.")
    return padding


def _margins(given: Mapping[str, Any], picture: Size, size: tuple[int | None, int | None]) -> Margins | None:
    expand, place = given.get("expand"), given.get("place")
    if expand is not None and place is not None:
        raise RequestError("expand and place both say where the picture lies; give one of the two.")
    if expand is not None:
        margins = _expansion(expand)
    elif place is not None:
        margins = _placed(place, picture, size)
    else:
        return None
    canvas = picture[0] + margins.left + margins.right, picture[1] + margins.top + margins.bottom
    if max(canvas) > SIDE_LIMIT:
        raise RequestError(
            f"expand: the picture would become {canvas[0]}x{canvas[1]}, and pictures may be up to {SIDE_LIMIT} pixels "
            "wide and high; expand it by less, or make the image smaller first."
        )
    return margins


def _expansion(expand: Any) -> Margins:
    """`left=256,top=128`, or a mapping."""
    try:
        pairs = expand.items() if isinstance(expand, Mapping) else [each.split("=") for each in expand.split(",")]
        sides = {name.strip(): int(value) for name, value in pairs}
        margins = Margins(**sides)
    except (TypeError, ValueError):
        margins = Margins()
    if min(margins) < 0 or not any(margins):
        raise RequestError(
            f"expand {expand!r}: give pixels for {', '.join(Margins._fields)}, such as left=256,top=128."
        )
    return margins


def _placed(place: Any, picture: Size, size: tuple[int | None, int | None]) -> Margins:
    """Where the picture lies in a larger one: x,y of its left upper corner, or words."""
    width, height = size
    if width is None or height is None:
        raise RequestError("place says where the image lies in a larger picture; give that picture's width and height.")
    across, down = width - picture[0], height - picture[1]
    if min(across, down) < 0 or (across, down) == (0, 0):
        raise RequestError(
            f"place: the image is {picture[0]}x{picture[1]} and must be smaller than the picture, {width}x{height}; "
            "make it smaller first, or give a larger size."
        )
    words = set(place.split("-")) if isinstance(place, str) else set()
    if words and words <= set(PLACES):
        left = 0 if "left" in words else across if "right" in words else across // 2
        top = 0 if "top" in words else down if "bottom" in words else down // 2
    else:
        left, top = _whole_numbers("place", place, 2, f"x,y in pixels, or words such as center or {PLACES[3]}-left")
    if not (0 <= left <= across and 0 <= top <= down):
        raise RequestError(f"place {left},{top}: the image would lie outside; x is up to {across}, y up to {down}.")
    return Margins(left, top, across - left, down - top)


def _whole_numbers(name: str, value: Any, count: int, form: str) -> list[int]:
    try:
        parts: Sequence[Any] = value.split(",") if isinstance(value, str) else value
        numbers = [int(part) for part in parts]
        if len(numbers) != count or any(float(part) != number for part, number in zip(parts, numbers, strict=True)):
            raise ValueError
    except (TypeError, ValueError):
        raise RequestError(f"{name} {quoted(value)}: give {form}.") from None
    return numbers


def _written(margins: Margins) -> str:
    return ",".join(f"{side}={pixels}" for side, pixels in margins._asdict().items() if pixels)
