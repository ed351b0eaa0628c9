"""Removes the grid of patch borders from a finished picture.

In: pixels [H, W, 3] in 0..1, the distance between borders, and the mode. Out: pixels. With a radius, the step across
each border is spread over that many pixels on each side. The adaptive mode smooths a wider band, but only where the
picture is flat on both sides and the step is stronger than those in the middle of the patches: skies and walls lose
their grid, while texture and real edges stay.
Must not know: models, files.
"""

from collections.abc import Sequence

import numpy as np

ADAPTIVE = "adaptive"

# The adaptive mode's numbers, in levels of 255 where they are brightness.
BAND = 12  # pixels on each side of a border that are looked at and evened out
CLOSE = 2  # and for what the pixels right at a border have of their own
ALONG = 9  # pixels along a border over which steps are averaged: a seam is one step all along, noise is not
FLAT = (2.5, 6.0)  # roughness: below, flat; above, texture that hides any seam
EDGE = (10.0, 18.0)  # step: above, a real edge that happens to lie on a border
STRONG = (1.0, 2.0)  # step at the border by step in the middle of patches: below, nothing to see


def blend_seams(pixels: np.ndarray, period: int, how: int | str) -> np.ndarray:
    """`how`: a radius in pixels, or "adaptive"."""
    for _ in range(2):  # across the borders between columns, then between rows
        pixels = _evened(pixels, period) if how == ADAPTIVE else _spread(pixels, period, int(how))
        pixels = pixels.swapaxes(0, 1)
    blended: np.ndarray = np.clip(pixels, 0, 1)
    return blended


def _spread(pixels: np.ndarray, period: int, radius: int) -> np.ndarray:
    """At the borders between columns, turns each step into a ramp of 2 * radius pixels."""
    borders = _borders(pixels.shape[1], period, max(2, radius))
    return _ramped(pixels, borders, _excess(pixels, borders), radius)


def _excess(pixels: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """What the step from one pixel to the next across each border has beyond the slope around it, [H, borders, 3]."""
    at = pixels[:, borders + np.arange(-2, 2)[:, None]]  # [H, 4, borders, 3]
    steps = np.diff(at, axis=1)  # before, across and behind the border
    return steps[:, 1] - (steps[:, 0] + steps[:, 2]) / 2


def _ramped(pixels: np.ndarray, borders: np.ndarray, step: np.ndarray, radius: int) -> np.ndarray:
    """Turns the step [H, borders, 3] at each border into a ramp, half of it on each side."""
    out = pixels.copy()
    for offset in range(-radius, radius):
        distance = abs(offset + 0.5)
        out[:, borders + offset] -= np.sign(offset + 0.5) * step * 0.5 * (1 - distance / radius)
    return out


def _borders(width: int, period: int, room: int) -> np.ndarray:
    """The first column after each border that has `room` columns on both sides."""
    return np.arange(period, width - room + 1, period) if period >= 2 * room else np.arange(0)


def _evened(pixels: np.ndarray, period: int) -> np.ndarray:
    """The adaptive mode, across the borders between columns: first the step between the two patches as wholes, then
    what the two pixels at the border still have of their own."""
    band = min(BAND, period // 2)
    borders = _borders(pixels.shape[1], period, band)
    if not len(borders):
        return pixels
    middles = np.clip(np.stack([borders - period // 2, borders + period // 2]), band, pixels.shape[1] - band)
    step, roughness = _lines(pixels, borders, band, period)
    around = [_lines(pixels, middle, band, period)[0] for middle in middles]
    pixels = _ramped(pixels, borders, step * _weight(step, around, roughness), band)
    step = _along(_excess(pixels, borders) * 255, period)
    around = [_along(_excess(pixels, middle) * 255, period) for middle in middles]
    return _ramped(pixels, borders, step * _weight(step, around, roughness), CLOSE)


def _weight(step: np.ndarray, around: Sequence[np.ndarray], roughness: np.ndarray) -> np.ndarray:
    """How much of a step [H, borders, 3] is taken out, over 255: all where it is a seam, nothing where it is the
    picture's. `around`: the same measure in the middle of the patches on both sides."""
    size = np.abs(step).max(-1)
    usual = np.maximum(*(np.abs(other).max(-1) for other in around))
    seam = 1 - _falling(size / (usual + roughness / 4 + 0.2), STRONG)
    share: np.ndarray = (_falling(roughness, FLAT) * _falling(size, EDGE) * seam)[..., None] / 255
    return share


def _lines(pixels: np.ndarray, borders: np.ndarray, band: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """A straight line through the `band` pixels on each side of each border, in levels: the step between the two lines
    at the border [H, borders, 3], and the rougher side's deviation from its line [H, borders], averaged along the
    border."""
    left, roughness_left = _fit(pixels, borders, -np.arange(1, band + 1))
    right, roughness_right = _fit(pixels, borders, np.arange(band))
    roughest = _along(np.maximum(roughness_left, roughness_right), period)
    return _along(right - left, period), np.sqrt(np.maximum(roughest, 0))


def _fit(pixels: np.ndarray, borders: np.ndarray, outward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on one side of each border, `outward`: its columns, counted from the border. The line's value at
    the border [H, borders, 3] and the mean squared rest [H, borders]. Sums are of differences to the outermost pixel,
    so that float32 is enough."""
    count = len(outward)
    places = np.arange(count) + 0.5
    centred = places - places.mean()
    base = pixels[:, borders + outward[-1]]
    total = weighted = squares = np.zeros_like(base)
    for place, offset in zip(centred.tolist(), outward.tolist(), strict=True):
        value = (pixels[:, borders + offset] - base) * 255
        total = total + value
        weighted = weighted + place * value
        squares = squares + value * value
    spread = float((centred**2).sum())
    slope = weighted / spread
    rest = (squares - total * total / count - slope * slope * spread) / count
    return base * 255 + total / count - slope * places.mean(), rest.mean(-1)


def _along(values: np.ndarray, period: int) -> np.ndarray:
    """The mean of up to ALONG neighbours along the first axis, of the same patch: another patch has another step."""
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0, dtype=np.float64)])
    places = np.arange(len(values))
    patch = places // period * period
    first = np.maximum(places - ALONG // 2, patch)
    last = np.minimum(np.minimum(places + ALONG // 2 + 1, patch + period), len(values))
    counts = (last - first).reshape(-1, *[1] * (values.ndim - 1))
    means: np.ndarray = (sums[last] - sums[first]) / counts
    return means


def _falling(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """1 below the limits, 0 above them, smooth between."""
    low, high = limits
    t = np.clip((values - low) / (high - low), 0, 1)
    return 1 - t * t * (3 - 2 * t)
