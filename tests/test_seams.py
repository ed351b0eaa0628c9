"""The seam blend, measured on pictures made by rule (tests/seam_pictures.py)."""

import numpy as np
import pytest

from mlx_imagegen.seams import blend_seams
from tests.seam_pictures import PERIOD, SIZE, gradient, half_and_half, natural, seam_energy, steps, with_grid

SKY = slice(0, SIZE // 2)  # the left half of half_and_half


def stored(pixels: np.ndarray) -> np.ndarray:
    """As a file holds it: 256 levels."""
    return np.round(np.clip(pixels, 0, 1) * 255) / 255


def blended(pixels: np.ndarray, how: int | str) -> np.ndarray:
    return stored(blend_seams(pixels, PERIOD, how))


def changed(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference, in levels."""
    return float(np.abs(before - after).mean() * 255)


@pytest.mark.parametrize("how", [1, 2, 4, "adaptive"])
def test_a_grid_over_a_gradient_loses_its_energy(how: int | str) -> None:
    picture = stored(with_grid(gradient()))
    before, _ = seam_energy(picture)
    after, _ = seam_energy(blended(picture, how))
    assert after < before / 4  # half is what was asked for


@pytest.mark.parametrize("how", [1, 2, "adaptive"])
def test_a_natural_picture_is_left_alone(how: int | str) -> None:
    picture = stored(natural())
    assert changed(picture, blended(picture, how)) < 0.3


@pytest.mark.parametrize("radius", [1, 2])
def test_only_the_band_is_changed(radius: int) -> None:
    picture = stored(with_grid(natural()))
    difference = np.abs(blended(picture, radius) - picture).max(-1) * 255
    place = (np.arange(SIZE) + radius) % PERIOD
    band = place < 2 * radius
    band[: PERIOD - radius] = band[SIZE - PERIOD + radius :] = False  # the picture's own edge is no seam
    assert difference[~band][:, ~band].max() <= 1
    assert difference[band].max() > 1 and difference[:, band].max() > 1  # both directions


def test_adaptive_takes_out_what_the_radius_leaves_visible() -> None:
    """The step between the insides of two patches: softening two rows of pixels does not lower it."""
    picture = stored(with_grid(gradient()))
    before = steps(picture)
    assert steps(blended(picture, 1)) > 0.9 * before
    assert steps(blended(picture, "adaptive")) < 0.35 * before


def test_adaptive_takes_out_lines_at_the_borders() -> None:
    """Patches may be alike and only their last row and column too dark."""
    picture = gradient()
    picture[:, PERIOD - 1 :: PERIOD] -= 3 / 255
    picture[PERIOD - 1 :: PERIOD] -= 3 / 255
    before, _ = seam_energy(stored(picture))
    assert seam_energy(blended(stored(picture), "adaptive"))[0] < before / 4


def test_adaptive_does_nothing_where_there_is_no_grid() -> None:
    assert changed(stored(gradient()), blended(stored(gradient()), "adaptive")) < 0.01


def test_adaptive_leaves_texture_and_real_edges() -> None:
    """The edge lies on a border; a radius of 1 softens it and the texture, the adaptive mode touches neither."""
    picture = stored(half_and_half())
    assert changed(picture, blended(picture, "adaptive")) < 0.01
    assert changed(picture, blended(picture, 1)) > 0.2


def test_adaptive_leaves_what_is_no_stronger_at_the_borders() -> None:
    """Stripes of 16 pixels: flat, faint, and every second edge lies on a border. They are the picture's own."""
    stripes = 0.5 + np.where(np.arange(SIZE) // 16 % 2, 4, 0) / 255
    picture = stored(np.broadcast_to(stripes[None, :, None], (SIZE, SIZE, 3)))
    assert changed(picture, blended(picture, "adaptive")) < 0.01


def test_adaptive_tells_the_sky_from_the_texture() -> None:
    """Both have a grid here: it goes from the sky, the texture hides it and is kept."""
    picture = stored(with_grid(half_and_half()))
    after = blended(picture, "adaptive")
    sky, texture = slice(0, 3 * PERIOD), slice(SIZE // 2 + PERIOD, SIZE)
    assert steps(after[SIZE // 2 :], sky) < 0.5 * steps(picture[SIZE // 2 :], sky)
    assert changed(picture[:, texture], after[:, texture]) < 0.05


@pytest.mark.parametrize("how", [1, 8, "adaptive"])
def test_pictures_smaller_than_a_patch_pass_unchanged(how: int | str) -> None:
    picture = stored(natural(24))
    assert (blended(picture, how) == picture).all()


@pytest.mark.parametrize("how", [1, "adaptive"])
def test_patches_of_eight_pixels(how: int | str) -> None:
    rng = np.random.default_rng(0)
    picture = gradient(64) + np.kron(rng.uniform(-3, 3, (8, 8, 1)) / 255, np.ones((8, 8, 1)))
    before, _ = seam_energy(picture, 8)
    assert seam_energy(blend_seams(picture, 8, how), 8)[0] < before / 2
