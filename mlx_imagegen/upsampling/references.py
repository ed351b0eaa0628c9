"""Reference pictures as the upsampler was trained on: brought down to a number of pixels, and through JPEG.

In: pictures as a user gives them. Out: RGB, with sides that are multiples of a merged patch.
Must not know: patches, towers.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..errors import RequestError
from ..image import ALPHA, Picture, laid_over, open_picture

MULTIPLE = 32  # pixels
SIDES = {1: 1024, 2: 724}  # by how many references there are, the side of a square of as many pixels as each may have
USUAL_SIDE = 512  # of more
JPEG_QUALITY = 92
LARGEST_ASPECT = 200
MOST = 10


def prepared_references(pictures: Sequence[Picture] | Picture) -> list[Image.Image]:
    given: list[Any] = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    if len(given) > MOST:
        raise RequestError(f"references: {len(given)} pictures are given; the upsampler takes up to {MOST}.")
    return [prepared(open_picture(picture, "references", alpha=True), len(given)) for picture in given]


def prepared(picture: Image.Image, count: int) -> Image.Image:
    """One of `count`, upright; on white where it is transparent."""
    if picture.mode == ALPHA:
        picture = laid_over([Image.new(ALPHA, picture.size, "white"), picture])
    size = reference_size(picture.size, count)
    picture = picture.convert("RGB")
    picture = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(file).convert("RGB")


def reference_size(size: tuple[int, int], count: int) -> tuple[int, int]:
    """Width and height: the nearest multiples, or, where they are too many pixels, the largest below in its shape."""
    width, height = size
    if max(size) > LARGEST_ASPECT * min(size):
        raise RequestError(
            f"references: a picture of {width}x{height} is too narrow: the sides may differ {LARGEST_ASPECT} times at "
            "most. Cut out the part that matters."
        )
    area = most_pixels(count)
    across, down = (max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in size)
    if across * down > area:
        shrink = math.sqrt(width * height / area)
        across, down = _below(width / shrink), _below(height / shrink)
    if across * down > area:  # a side was raised to the least
        across, down = (across, _below(area / across)) if across == MULTIPLE else (_below(area / down), down)
    return across, down


def most_pixels(count: int) -> int:
    """Of each of so many references."""
    return SIDES.get(count, USUAL_SIDE) ** 2


def _below(side: float) -> int:
    return max(MULTIPLE, math.floor(side / MULTIPLE) * MULTIPLE)
