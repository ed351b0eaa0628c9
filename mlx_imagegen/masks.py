"""Masks: which part of a picture is drawn, and how the rest is kept.

In: a picture and its mask; a denoiser's velocity. Out: the part to draw, at the size at which it is drawn; a velocity
that leads everything outside the mask to the given picture; the finished picture with the kept pixels pasted back.
Must not know: models, user parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .image import resized

Size = tuple[int, int]  # width, height
Velocity = Callable[[mx.array, int], mx.array]  # (x, index of the step) -> dx/dsigma
DRAWN, KEPT = 255, 0
HALF = 128  # of 255: from here up a pixel is drawn; diffusers' 0.5
FEATHER = 4  # pixels inside the mask's border over which the drawn picture fades in


class Crop(NamedTuple):
    """In pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return self.right - self.left, self.bottom - self.top


class Margins(NamedTuple):
    """How far a picture is expanded on each side, in pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class Region:
    """The part of a picture that is drawn."""

    picture: Image.Image  # RGB, or RGBA for models that read alpha
    mask: Image.Image  # white where it is drawn; with a crop L in the picture's size, else of any size, or in colours
    crop: Crop | None = None  # drawn alone, at full size; None: the whole picture is drawn

    def drawn_at(self, size: Size) -> tuple[Image.Image, Image.Image]:
        """Picture and mask as the model gets them."""
        if self.crop is None:
            return resized(self.picture, size), greys(resized(self.mask, size))
        return fit(self.picture.crop(self.crop), size), fit(self.mask.crop(self.crop), size)

    def paste(self, drawn: Image.Image) -> Image.Image:
        """The given picture with the drawn pixels where the mask is. With a crop, the result has the given picture's
        size."""
        if self.crop is None:
            picture, mask = self.drawn_at(drawn.size)
        else:
            picture, mask = self.picture, self.mask
            canvas = picture.convert(drawn.mode)
            canvas.paste(cover(drawn, self.crop.size), self.crop[:2])
            drawn = canvas
        return Image.composite(drawn, picture.convert(drawn.mode), feathered(mask))


def box_mask(size: Size, box: Crop) -> Image.Image:
    """A mask that is white in the box."""
    mask = Image.new("L", size, KEPT)
    mask.paste(DRAWN, box)
    return mask


def expanded(picture: Image.Image, mask: Image.Image | None, margins: Margins) -> tuple[Image.Image, Image.Image]:
    """Picture and mask with margins to draw. The margins start with the colours of the picture's edge, because the
    autoencoder mixes them into the pixels next to them."""
    sides = (margins.top, margins.bottom), (margins.left, margins.right)
    kept = np.zeros(picture.size[::-1], np.uint8) if mask is None else np.asarray(mask)
    return (
        Image.fromarray(np.pad(np.asarray(picture), (*sides, (0, 0)), mode="edge")),
        Image.fromarray(np.pad(kept, sides, constant_values=DRAWN)),
    )


def crop_around(mask: Image.Image, size: Size, padding: int) -> Crop:
    """The box around all that is not black, with `padding` pixels on each side, grown to the proportions of `size` as
    far as the picture allows; diffusers' padding_mask_crop."""
    width, height = mask.size
    left, top, right, bottom = mask.getbbox() or (0, 0, width, height)
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, width), min(bottom + padding, height)
    ratio = size[0] / size[1]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, int((right - left) / ratio - (bottom - top)), height)
    else:
        left, right = _grown(left, right, int((bottom - top) * ratio - (right - left)), width)
    return Crop(left, top, right, bottom)


def _grown(first: int, last: int, more: int, limit: int) -> tuple[int, int]:
    """The range, longer by `more` (half on each side), moved into 0..limit, and cut if it is too long."""
    first, last = first - more // 2, last + more - more // 2
    if last > limit:
        first, last = first - (last - limit), limit
    if first < 0:
        first, last = 0, last - first
    return first, min(last, limit)


def fit(picture: Image.Image, size: Size) -> Image.Image:
    """Scaled to fit into `size` in its own proportions, centred; the rest is filled with the edges' colours."""
    (width, height), ratio, own = size, size[0] / size[1], picture.width / picture.height
    inner = (
        width if ratio < own else picture.width * height // picture.height,
        height if ratio >= own else picture.height * width // picture.width,
    )
    scaled = resized(picture, inner)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    out = Image.new(picture.mode, size)
    out.paste(scaled, (left, top))
    edges = {
        "above": ((width, top), (0, 0, width, 0), (0, 0)),
        "below": ((width, top), (0, inner[1], width, inner[1]), (0, top + inner[1])),
        "left": ((left, height), (0, 0, 0, height), (0, 0)),
        "right": ((left, height), (inner[0], 0, inner[0], height), (left + inner[0], 0)),
    }
    for area, edge, place in (edges[side] for side in (("above", "below") if ratio < own else ("left", "right"))):
        if 0 not in area:
            out.paste(scaled.resize(area, box=edge), place)
    return out


def cover(picture: Image.Image, size: Size) -> Image.Image:
    """Scaled to cover `size` in its own proportions, centred: undoes `fit`."""
    (width, height), ratio, own = size, size[0] / size[1], picture.width / picture.height
    outer = (
        width if ratio > own else picture.width * height // picture.height,
        height if ratio <= own else picture.height * width // picture.width,
    )
    out = Image.new(picture.mode, size)
    out.paste(resized(picture, outer), (width // 2 - outer[0] // 2, height // 2 - outer[1] // 2))
    return out


def feathered(mask: Image.Image) -> Image.Image:
    """The drawn picture's share of each pixel: the mask's grey, less near its border, and 0 outside."""
    inside = mask.point(lambda level: DRAWN if level else KEPT)
    share = np.zeros(mask.size[::-1], np.float32)
    for distance in range(FEATHER):
        # A pixel is white after a blur if all pixels around it are white.
        eroded = inside.filter(ImageFilter.BoxBlur(distance)) if distance else inside
        share += np.asarray(eroded) == DRAWN
    ramp = Image.fromarray((share * (DRAWN / FEATHER)).round().astype(np.uint8))
    return ImageChops.darker(mask, ramp)


def drawn_pixels(mask: Image.Image) -> mx.array:
    """[H, W], 1 where the picture is drawn and 0 elsewhere."""
    return mx.array((np.asarray(mask) >= HALF).astype(np.float32))


def sampled(mask: mx.array, grid: tuple[int, int]) -> mx.array:
    """[H, W] at a smaller grid; each value is that of the first pixel of its cell."""
    rows, columns = (
        mx.array([place * side // count for place in range(count)])
        for side, count in zip(mask.shape, grid, strict=True)
    )
    return mask[rows][:, columns]


def interpolated(mask: mx.array, grid: tuple[int, int]) -> mx.array:
    """[H, W] at a smaller grid; each value is the mean of the four pixels in the middle of its cell."""
    (height, width), (rows, columns) = mask.shape, grid
    down, across = height // rows, width // columns  # even
    cells = mask.reshape(rows, down, columns, across)
    return cells[:, down // 2 - 1 : down // 2 + 1, :, across // 2 - 1 : across // 2 + 1].mean(axis=(1, 3))


def keep_outside(velocity: Velocity, mask: mx.array, clean: mx.array, sigmas: Sequence[float]) -> Velocity:
    """A velocity that leads x to `clean` where the mask is 0. With any solver, x is then the given picture there, at
    the noise level of each step, with the noise it started with or that the solver draws. Between 0 and 1 the two are
    mixed. All in the loop's layout."""

    def kept(x: mx.array, index: int) -> mx.array:
        return mask * velocity(x, index).astype(x.dtype) + (1 - mask) * (x - clean) / sigmas[index]

    return kept


def greys(mask: Image.Image) -> Image.Image:
    """Call it after resizing, as diffusers does; otherwise a pixel of a coloured mask can be one level off."""
    return mask.convert("L")
