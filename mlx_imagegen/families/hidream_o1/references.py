"""Reference pictures: how large each becomes, what the vision tower is shown, and the layout drawn from boxes.

In: pictures as the user gave them, the target's size, boxes. Out: `Reference`s: the picture whose patches the model
reads, and the smaller one that the vision tower sees. All sizes are upstream's.
Must not know: MLX, tokens, prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw

from ...image import Box, fitted

Size = tuple[int, int]  # width, height

# A box and the border of the reference that belongs into it have one colour; the largest box has the first.
COLOURS = (
    (255, 0, 0), (0, 180, 0), (0, 0, 255), (204, 180, 0), (255, 0, 255),
    (0, 255, 255), (128, 0, 0), (0, 128, 0), (0, 0, 128), (128, 128, 0),
)  # fmt: skip
BOXES_DRAWN = 5
LINE, LEAST_LINE, BORDER = 0.05, 5, 0.04  # widths: shares of the picture's mean side; pixels


class Reference(NamedTuple):
    pixels: Image.Image
    shown: Image.Image  # for the vision tower


@dataclass(frozen=True)
class Rules:
    """How a request's reference pictures are sized. With boxes, their drawing is one more reference, the last."""

    target: Size  # of the picture to make
    patch: int
    shown_side: int
    shown_multiple: int
    boxes: tuple[Box, ...] = ()
    kept_side: int | None = None  # where the target took its shape from the one reference, the side by which it did

    def prepared(self, pictures: Sequence[Image.Image]) -> list[Reference]:
        side, shown = self._sides(len(pictures))
        if self.boxes:  # framed at the size that fits, which may not be the size that fits that one
            fit = [resized(picture, side, self.patch) for picture in pictures]
            framed = [_bordered(*pair) for pair in zip(fit, _colours(self.boxes, self.target), strict=False)]
            pictures = [*framed, _drawing(self.boxes, self.target)]
        read = [resized(picture, side, self.patch) for picture in pictures]
        return [
            Reference(picture, picture.resize(self._as_shown(picture.size, shown), Image.Resampling.LANCZOS))
            for picture in read
        ]

    def sizes(self, given: Sequence[Size]) -> list[tuple[Size, Size]]:
        """The sizes of what `prepared` makes of pictures: as they are read, and as they are shown."""
        side, shown = self._sides(len(given))
        if self.boxes:
            given = [*(fitted(size, side, self.patch) for size in given), self.target]
        read = [fitted(size, side, self.patch) for size in given]
        return [(size, self._as_shown(size, shown)) for size in read]

    def _sides(self, given: int) -> tuple[int, int]:
        count = given + bool(self.boxes)
        return self.kept_side or reference_side(count, max(self.target)), shown_size(count, self.shown_side)

    def _as_shown(self, size: Size, side: int) -> Size:
        return shown_dimensions(side, size[0] / size[1], self.shown_multiple)


def reference_side(count: int, target: int) -> int:
    """The side of a square with as many pixels as a reference may have; `target`: the longer side of the picture."""
    if count == 1:
        return target
    if count == 2:
        return target * 48 // 64
    if count <= 4:
        return target // 2
    return target * 24 // 64 if count <= 8 else target // 4


def shown_size(count: int, side: int) -> int:
    """The same for what the vision tower is shown."""
    if count <= 4:
        return side
    return side * 48 // 64 if count <= 8 else side // 2


def resized(picture: Image.Image, side: int, patch: int) -> Image.Image:
    """Scaled to cover the fitting size, what is over cut off on both sides."""
    picture = _halved(picture, side)
    return _cropped(picture, fitted(picture.size, side, patch))


def _halved(picture: Image.Image, side: int) -> Image.Image:
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return picture


def _cropped(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    across, down = picture.width / size[0], picture.height / size[1]
    covering = min(across, down)
    scaled = round(picture.width / covering), round(picture.height / covering)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size[0], top + size[1]))


def shown_dimensions(side: int, ratio: float, multiple: int) -> tuple[int, int]:
    width = math.sqrt(side * side * ratio)
    height = width / ratio
    return max(int(width / multiple), 1) * multiple, max(int(height / multiple), 1) * multiple


def _corners(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom in pixels, all inside."""
    (x1, x2, y1, y2), (width, height) = box, size
    left, right = (min(width - 1, round(x * width)) for x in (x1, x2))
    top, bottom = (min(height - 1, round(y * height)) for y in (y1, y2))
    return left, top, right, bottom


def _by_area(boxes: Sequence[Box], size: tuple[int, int]) -> list[int]:
    """The boxes' indices, the largest first; only so many are drawn."""

    def area(index: int) -> int:
        left, top, right, bottom = _corners(boxes[index], size)
        return (right - left) * (bottom - top)

    return sorted(range(len(boxes)), key=area, reverse=True)[:BOXES_DRAWN]


def _colours(boxes: Sequence[Box], size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """One for each possible reference, in the references' order; those without a box have the rest."""
    colours = [COLOURS[index % len(COLOURS)] for index in range(max(len(boxes), len(COLOURS)))]
    for rank, index in enumerate(_by_area(boxes, size)):
        colours[index] = COLOURS[rank]
    return colours


def _drawing(boxes: Sequence[Box], size: tuple[int, int]) -> Image.Image:
    """The boxes' outlines on black, the larger ones thicker and below."""
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    widest = int(math.sqrt(size[0] * size[1]) * LINE)
    thinner = max(1, widest // BOXES_DRAWN)
    for rank, index in enumerate(_by_area(boxes, size)):
        width = max(widest - rank * thinner, LEAST_LINE)
        draw.rectangle(_corners(boxes[index], size), outline=COLOURS[rank], width=width)
    return image


def _bordered(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture with a frame drawn over its edge."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for inset in range(int(math.sqrt(picture.width * picture.height) * BORDER)):
        draw.rectangle((inset, inset, picture.width - 1 - inset, picture.height - 1 - inset), outline=colour)
    return picture
