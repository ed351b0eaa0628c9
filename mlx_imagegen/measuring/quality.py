"""How far one picture is from another: PSNR, SSIM, GMSD, mean absolute difference, brightness and contrast shift, and
what became of flat areas.

In: two pictures of one size, made from the same noise. Out: numbers for tables. A shift of brightness or contrast is
reported apart from the rest because that is what too few bits in the wrong layers look like.
Must not know: models, files.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import RequestError
from ..image import to_pixels

LEVELS = 255
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# The window and the constants of Wang et al. 2004, as everybody's SSIM has them.
WINDOW_PIXELS, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
GRADIENT_CONSTANT = 170 / LEVELS**2  # of Xue et al. 2014
FLAT_LEVELS = 1.0  # a window whose standard deviation is below this is flat


@dataclass(frozen=True)
class Quality:
    """A picture against its reference; levels are of 255."""

    psnr_db: float | None  # None: equal; JSON has no infinity
    ssim: float  # of the luma, 1 if equal
    mean_difference_levels: float
    brightness_shift_levels: float  # above 0: brighter than the reference
    contrast_shift_percent: float  # of the luma's standard deviation
    gmsd: float = 0.0  # gradient magnitude similarity deviation of the luma (Xue et al. 2014), 0 if equal
    # Where the reference is flat: how far windows' means lie from it (white that drifts to grey), and the standard
    # deviation that was added (grain). None: it is flat nowhere.
    flat_shift_levels: float | None = None
    flat_grain_levels: float | None = None


def compared(picture: Image.Image, reference: Image.Image) -> Quality:
    if picture.size != reference.size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (picture.size, reference.size))
        raise RequestError(f"pictures of {sizes} pixels cannot be compared; make them of one size.")
    ours, theirs = (to_pixels(each).astype(np.float64) for each in (picture, reference))
    luma, luma_reference = ours @ LUMA, theirs @ LUMA
    spread = float(luma_reference.std())
    return Quality(
        psnr_db=psnr(ours, theirs),
        ssim=ssim(luma, luma_reference),
        mean_difference_levels=float(np.abs(ours - theirs).mean()) * LEVELS,
        brightness_shift_levels=float(luma.mean() - luma_reference.mean()) * LEVELS,
        contrast_shift_percent=100 * (float(luma.std()) / spread - 1) if spread else 0.0,
        gmsd=gmsd(luma, luma_reference),
        **flat_areas(luma, luma_reference),
    )


def psnr(x: np.ndarray, y: np.ndarray) -> float | None:
    """Decibels, for values in 0..1; None if they are equal."""
    error = float(np.square(x - y).mean())
    return -10 * math.log10(error) if error else None


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The mean structural similarity of two planes [H, W] in 0..1, over every whole window."""
    taps = _gaussian(min(WINDOW_PIXELS, *x.shape))
    mean_x, mean_y = _blurred(x, taps), _blurred(y, taps)
    var_x = _blurred(x * x, taps) - mean_x**2
    var_y = _blurred(y * y, taps) - mean_y**2
    both = _blurred(x * y, taps) - mean_x * mean_y
    near, structure = K1**2, K2**2
    top = (2 * mean_x * mean_y + near) * (2 * both + structure)
    return float((top / ((mean_x**2 + mean_y**2 + near) * (var_x + var_y + structure))).mean())


def gmsd(x: np.ndarray, y: np.ndarray) -> float:
    """The spread of the similarity of two planes' [H, W] gradients, at half size, as its authors have it."""
    first, second = (_gradient(_halved(plane)) for plane in (x, y))
    alike = (2 * first * second + GRADIENT_CONSTANT) / (first**2 + second**2 + GRADIENT_CONSTANT)
    return float(alike.std())


def flat_areas(x: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """`flat_shift_levels` and `flat_grain_levels` of two planes [H, W] in 0..1."""
    taps = _gaussian(min(WINDOW_PIXELS, *x.shape))
    mean, mean_reference = _blurred(x, taps), _blurred(reference, taps)
    var, var_reference = _blurred(x * x, taps) - mean**2, _blurred(reference**2, taps) - mean_reference**2
    flat = var_reference < (FLAT_LEVELS / LEVELS) ** 2
    if not flat.any():
        return {"flat_shift_levels": None, "flat_grain_levels": None}
    added = np.maximum(var - var_reference, 0)[flat].mean()
    shift = np.abs(mean - mean_reference)[flat].mean()
    return {"flat_shift_levels": float(shift) * LEVELS, "flat_grain_levels": math.sqrt(added) * LEVELS}


def _halved(plane: np.ndarray) -> np.ndarray:
    """[H, W] -> [H/2, W/2]: means of 2 x 2; beyond an odd side there are zeros."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, height % 2), (0, width % 2)))
    halves: np.ndarray = plane.reshape((height + 1) // 2, 2, (width + 1) // 2, 2).mean(axis=(1, 3))
    return halves


def _gradient(plane: np.ndarray) -> np.ndarray:
    """The magnitude by Prewitt's operator, with zeros around the plane."""
    padded = np.pad(plane, 1)
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    sides = (across[:-2] + across[1:-1] + across[2:]) / 3, (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3
    return np.asarray(np.hypot(*sides))


def _gaussian(size: int) -> np.ndarray:
    distance = np.arange(size) - (size - 1) / 2
    taps: np.ndarray = np.exp(-0.5 * (distance / WINDOW_SIGMA) ** 2)
    taps /= taps.sum()
    return taps


def _blurred(plane: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """[H, W] -> [H - n + 1, W - n + 1]: a window's weighted mean, rows and columns apart."""
    for axis in (0, 1):
        plane = np.lib.stride_tricks.sliding_window_view(plane, len(taps), axis) @ taps
    return plane
