"""Quality's numbers against their definitions, written out window by window."""

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.measuring.quality import LUMA, compared, flat_areas, gmsd, psnr, ssim

PIQ = (0.06402814743805271, 0.06484446009428114)


def picture(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Smooth shapes, not white noise: SSIM is about structure."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def noisy(image: Image.Image, amount: float) -> Image.Image:
    noise = np.random.default_rng(9).normal(0, amount, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def luma(image: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(image, np.float64) / 255, -1, 0)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def ssim_by_windows(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004: an 11x11 Gaussian window of sigma 1.5, one position after the other."""
    row, column = np.mgrid[-5:6, -5:6]
    window = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            values.append(light * (2 * both + 0.03**2) / (var_a + var_b + 0.03**2))
    return float(np.mean(values))


def test_ssim_is_its_definition() -> None:
    x, y = luma(picture(0)), luma(noisy(picture(0), 12))
    assert ssim(x, y) == pytest.approx(ssim_by_windows(x, y), abs=1e-9)
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(x, luma(picture(1))) < ssim(x, y) < 0.99


def test_psnr_of_a_known_error() -> None:
    x = np.full((8, 8, 3), 0.5)
    assert psnr(x, x + 0.1) == pytest.approx(20)
    assert psnr(x, x) is None


def test_a_brighter_picture_is_told_from_one_with_more_contrast() -> None:
    grey = np.asarray(picture(2), np.float64) * 0.4 + 60  # far from both ends, so that nothing is clipped
    base = Image.fromarray(grey.round().astype(np.uint8))
    levels = np.asarray(base, np.float64)
    brighter = compared(Image.fromarray((levels + 8).astype(np.uint8)), base)
    assert brighter.brightness_shift_levels == pytest.approx(8, abs=1e-3)
    assert brighter.contrast_shift_percent == pytest.approx(0, abs=1e-3)
    assert brighter.mean_difference_levels == pytest.approx(8, abs=1e-3)
    mean = luma(base).mean() * 255
    harder = compared(Image.fromarray((mean + (levels - mean) * 1.1).round().astype(np.uint8)), base)
    assert harder.contrast_shift_percent == pytest.approx(10, abs=0.5)
    assert harder.brightness_shift_levels == pytest.approx(0, abs=0.3)


def test_equal_pictures_and_flat_ones() -> None:
    same = compared(picture(3), picture(3))
    assert (same.psnr_db, same.mean_difference_levels, same.brightness_shift_levels) == (None, 0, 0)
    flat = Image.new("RGB", (16, 16), (90, 90, 90))
    assert compared(noisy(flat, 5), flat).contrast_shift_percent == 0, "there is no contrast to compare with"


def test_sizes_must_agree() -> None:
    with pytest.raises(RequestError, match="40x24 and 16x16"):
        compared(picture(0), picture(0, (16, 16)))


def test_gmsd_is_the_reference_implementations() -> None:
    """The numbers are piq 0.8's, in float64, for the same pictures; an odd side as well."""
    rng = np.random.default_rng(7)
    for height, width, expected in ((64, 48, PIQ[0]), (33, 47, PIQ[1])):
        x = rng.random((height, width, 3))
        y = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)
        assert gmsd(x @ LUMA, y @ LUMA) == pytest.approx(expected, rel=1e-6)
        assert gmsd(x @ LUMA, x @ LUMA) == 0


def test_flat_areas_show_drift_and_grain() -> None:
    """Half of the picture is flat: what happens to the other half does not count."""
    rng = np.random.default_rng(3)
    reference = np.concatenate([np.full((64, 64), 0.9), rng.random((64, 64))], axis=1)
    drifted, grainy = reference.copy(), reference.copy()
    drifted[:, :64] -= 5 / 255
    grainy[:, :64] += rng.normal(size=(64, 64)) * 3 / 255
    busy = np.concatenate([reference[:, :64], rng.random((64, 64))], axis=1)
    shift, grain = "flat_shift_levels", "flat_grain_levels"
    assert flat_areas(drifted, reference)[shift] == pytest.approx(5) and flat_areas(drifted, reference)[grain] == 0
    noise = flat_areas(grainy, reference)[grain]
    assert noise is not None and noise == pytest.approx(3, rel=0.1)
    assert flat_areas(busy, reference) == {shift: 0, grain: 0}
    assert flat_areas(reference, rng.random((64, 128))) == {shift: None, grain: None}
