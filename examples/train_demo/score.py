"""Decide whether a picture shows its caption's scene: background, colour, position, shape.

In: pictures (uint8 [H, W, 3]) and scenes. Out: a `Verdict` each, and their means. It reads only pixels and knows no
model. Edges may be soft: colours are counted inside shapes only, and a shape is the one whose filled outline of the
same area and centre differs least from what is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import scenes

PALETTE = np.array(list(scenes.COLOURS.values()), np.float32)
GROUNDS = np.array(list(scenes.BACKGROUNDS.values()), np.float32)
LEAST_PIXELS = 60  # inside a thing of the smallest kind there are 200
LARGEST_MISFIT = 0.4
REACH = 40


@dataclass(frozen=True)
class Verdict:
    """What is right in one picture; `right` is all of the first four, `size` is reported but does not count.

    What the scene leaves open is right whatever it is.
    """

    background: bool
    colour: bool  # the colours, and the number of things
    position: bool
    shape: bool
    right: bool
    size: bool


@dataclass(frozen=True)
class Seen:
    """One thing in a picture: a connected part of one colour, away from edges."""

    colour: str
    centre: np.ndarray
    shape: str
    size: str


def judge(picture: np.ndarray, scene: scenes.Scene) -> Verdict:
    """Compare one picture with one scene."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    ground = int(((GROUNDS - np.median(border, 0)) ** 2).sum(1).argmin())
    background = scene.background in ("", tuple(scenes.BACKGROUNDS)[ground])
    seen = _seen(pixels, ground)
    matches = [
        found
        for found in itertools.permutations(seen, len(scene.things))
        if all(thing.colour in ("", one.colour) for thing, one in zip(scene.things, found, strict=True))
    ]
    colour = bool(matches) and len(seen) == len(scene.things)
    details = [_details(scene, found) for found in matches]
    position, shape, size = max(details, key=sum, default=(False, False, False))
    return Verdict(background, colour, position, shape, background and colour and position and shape, size)


def _details(scene: scenes.Scene, found: Sequence[Seen]) -> tuple[bool, bool, bool]:
    """Position, shape and size of the things found for those wanted."""
    pairs = list(zip(scene.things, found, strict=True))
    shape = all(thing.shape == one.shape for thing, one in pairs)
    size = all(thing.size in ("", one.size) for thing, one in pairs)
    return not scene.where or _place(scene, [one.centre for one in found]), shape, size


def _seen(pixels: np.ndarray, ground: int) -> list[Seen]:
    labels = _labels(pixels, ground)
    inner = _inner(labels)
    parts = [(colour, part) for colour in range(len(PALETTE)) for part in _connected(inner == colour)]
    centres = [np.array([c.mean() for c in np.nonzero(part)[::-1]]) for _, part in parts]
    seen = []
    for i, (colour, _) in enumerate(parts):
        others = [(parts[j][0], centres[j]) for j in range(len(parts)) if j != i]
        shape, radius = _shape(pixels, labels, ground, colour, others, centres[i])
        size = "small" if radius < 18.5 else "large"
        seen.append(Seen(tuple(scenes.COLOURS)[colour], centres[i], shape, size))
    return seen


def _connected(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask that are large enough to be a thing; with its specks where it is a single one."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # each pixel takes the largest number around it
        padded = np.pad(numbers, 1)
        across = np.maximum(padded[1:-1, :-2], padded[1:-1, 2:])
        down = np.maximum(padded[:-2, 1:-1], padded[2:, 1:-1])
        spread = np.where(mask, np.maximum(numbers, np.maximum(across, down)), 0)
        if (spread == numbers).all():
            break
        numbers = spread
    found, counts = np.unique(numbers[mask], return_counts=True)
    large = found[counts >= LEAST_PIXELS]
    if len(large) > 1:
        return [numbers == number for number in large]
    return [mask] if mask.sum() >= LEAST_PIXELS else []


def score(pictures: np.ndarray, wanted: Sequence[scenes.Scene]) -> dict[str, float]:
    """The share of pictures right in each respect."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, wanted, strict=True)]
    shares = np.array([astuple(verdict) for verdict in verdicts], float).mean(0)
    return {field.name: round(float(share), 4) for field, share in zip(fields(Verdict), shares, strict=True)}


def _labels(pixels: np.ndarray, ground: int) -> np.ndarray:
    """Each pixel's nearest colour of the palette; -1 where the background is nearer than all."""
    choices = np.concatenate([PALETTE, GROUNDS[ground : ground + 1]])
    distance = ((pixels[:, :, None] - choices) ** 2).sum(-1)
    labels = distance.argmin(-1)
    return np.where(labels == len(PALETTE), -1, labels)


def _inner(labels: np.ndarray) -> np.ndarray:
    """Labels of pixels whose four neighbours agree, -1 elsewhere: edges blend into colours that are not there."""
    inner = np.full_like(labels, -1)
    centre = labels[1:-1, 1:-1]
    same = (labels[:-2, 1:-1] == centre) & (labels[2:, 1:-1] == centre)
    same &= (labels[1:-1, :-2] == centre) & (labels[1:-1, 2:] == centre)
    inner[1:-1, 1:-1] = np.where(same, centre, -1)
    return inner


def _place(scene: scenes.Scene, centres: list[np.ndarray]) -> bool:
    if len(centres) == 1:
        names = tuple(scenes.PLACES)
        distances = [np.hypot(*(centres[0] - np.array(scenes.PLACES[name]))) for name in names]
        return names[int(np.argmin(distances))] == scene.where
    across, down = centres[0] - centres[1]
    if abs(across) > abs(down):
        return scene.where == ("right of" if across > 0 else "left of")
    return scene.where == ("below" if down > 0 else "above")


def _shape(
    pixels: np.ndarray,
    labels: np.ndarray,
    ground: int,
    colour: int,
    others: list[tuple[int, np.ndarray]],
    centre: np.ndarray,
) -> tuple[str, float]:
    """The best fitting shape (nothing if none fits) and its size in pixels; `others` are things near it."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(np.float32) + 0.5
    axis = PALETTE[colour] - GROUNDS[ground]
    cover = np.clip(((pixels - GROUNDS[ground]) @ axis) / (axis @ axis), 0, 1)
    for other, middle in others:
        if other != colour:
            cover[labels == other] = 0
        else:
            cover[np.hypot(x - middle[0], y - middle[1]) < np.hypot(x - centre[0], y - centre[1])] = 0
    cover[np.maximum(abs(x - centre[0]), abs(y - centre[1])) > REACH] = 0
    cover[cover < 0.25] = 0
    area = float(cover.sum()) + 1e-6
    middle = np.array([(cover * x).sum(), (cover * y).sum()]) / area
    best, size, misfit = "", 0.0, LARGEST_MISFIT
    for shape in scenes.SHAPES:
        unit_area, offset = _UNITS[shape]
        radius = (area / unit_area) ** 0.5
        distance = scenes.signed_distance(shape, x - middle[0], y - middle[1] + offset * radius, radius)
        error = float(abs(np.clip(0.5 - distance, 0, 1) - cover).sum()) / area
        if error < misfit:
            best, size, misfit = shape, radius / scenes.RADIUS[shape], error
    return best, size


def _unit(shape: str) -> tuple[float, float]:
    """Area of a shape of radius one and how far below its centre its centroid lies."""
    grid = (np.arange(400) + 0.5) / 100 - 2
    inside = scenes.signed_distance(shape, grid[None], grid[:, None], 1.0) < 0
    return float(inside.sum()) / 1e4, float((inside * grid[:, None]).sum() / inside.sum())


_UNITS = {shape: _unit(shape) for shape in scenes.SHAPES}
