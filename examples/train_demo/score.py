"""Say whether a picture shows what its caption's scene says: background, colour, position, shape.

In: pictures (uint8 [H, W, 3]) and scenes. Out: a `Verdict` each, and their means. It reads pixels alone and knows no
model. Edges may be soft: colours are counted inside shapes only, and a shape is the one whose filled outline of the
same area and centre differs least from what is seen.
"""

from __future__ import annotations

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
    """What is right in one picture; `right` is all of the first four, `size` is told but does not count."""

    background: bool
    colour: bool
    position: bool
    shape: bool
    right: bool
    size: bool


def judge(picture: np.ndarray, scene: scenes.Scene) -> Verdict:
    """Compare one picture with one scene."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    ground = int(((GROUNDS - np.median(border, 0)) ** 2).sum(1).argmin())
    labels = _labels(pixels, ground)
    inner = _inner(labels)
    found = {i for i in range(len(PALETTE)) if (inner == i).sum() >= LEAST_PIXELS}
    names = tuple(scenes.COLOURS)
    wanted = [names.index(thing.colour) for thing in scene.things]
    present = [i for i in wanted if i in found]
    centres = {i: np.array([c.mean() for c in np.nonzero(inner == i)[::-1]]) for i in present}
    background = tuple(scenes.BACKGROUNDS)[ground] == scene.background
    colour = found == set(wanted)
    position = len(present) == len(wanted) and _place(scene, [centres[i] for i in wanted])
    seen = [_shape(pixels, labels, ground, i, wanted, centres[i]) if i in centres else ("", 0.0) for i in wanted]
    shape = [name for name, _ in seen] == [thing.shape for thing in scene.things]
    sizes = ["small" if radius < 18.5 else "large" for _, radius in seen]
    size = sizes == [thing.size for thing in scene.things]
    return Verdict(background, colour, position, shape, background and colour and position and shape, size)


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
    pixels: np.ndarray, labels: np.ndarray, ground: int, colour: int, others: list[int], centre: np.ndarray
) -> tuple[str, float]:
    """The best fitting shape (nothing if none fits) and its size in pixels."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(np.float32) + 0.5
    axis = PALETTE[colour] - GROUNDS[ground]
    cover = np.clip(((pixels - GROUNDS[ground]) @ axis) / (axis @ axis), 0, 1)
    for other in others:
        if other != colour:
            cover[labels == other] = 0
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
