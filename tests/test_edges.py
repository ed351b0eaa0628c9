"""Canny's edges against OpenCV's, pixel for pixel; and what counts as a drawing."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlx_imagegen.edges import HIGH, LOW, draw_edges, is_drawing


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    few = rng.integers(0, 256, (1 + size[1] // 7, 1 + size[0] // 7, 3), np.uint8)
    return np.asarray(Image.fromarray(few).resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("seed", range(5))
def test_edges_equal_opencv(seed: int) -> None:
    """Of noise, greys and smooth colours, at sizes down to a pixel; those of a photo hang together."""
    rng, drawn = np.random.default_rng(seed), 0
    for size in ((97, 64), (33, 120), (1, 9), (8, 1), (1, 1), (2, 3)):
        noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        for levels in (noise, np.repeat(noise[..., :1], 3, axis=2), smooth(rng, size)):
            picture = Image.fromarray(levels)
            ours = np.asarray(draw_edges(picture))
            theirs = cv2.Canny(np.ascontiguousarray(levels), LOW, HIGH)
            assert ours.shape == levels.shape and np.array_equal(ours, np.repeat(theirs[..., None], 3, axis=2))
            drawn += int((theirs > 0).sum())
    assert drawn > 1000


def test_a_long_edge_is_followed_from_one_sure_pixel() -> None:
    """A faint outline counts as far as it hangs together with a strong part."""
    levels = np.full((40, 60), 100, np.uint8)
    levels[10:30, 10:50] = 120  # a gradient of 80: possible, not sure
    picture = Image.fromarray(levels).convert("RGB")
    assert not np.asarray(draw_edges(picture)).any()
    levels[10:14, 10:14] = 250
    found = np.asarray(draw_edges(Image.fromarray(levels).convert("RGB")))[..., 0]
    assert np.array_equal(found, cv2.Canny(levels, LOW, HIGH)) and found[:, 49:51].any() and found[28:31].any()


def test_drawings_and_photos_are_told_apart() -> None:
    drawing = Image.new("RGB", (80, 60))
    ImageDraw.Draw(drawing).ellipse((10, 10, 60, 50), outline="white", width=2)
    photo = Image.fromarray(smooth(np.random.default_rng(0), (80, 60)))
    assert is_drawing(drawing) and is_drawing(draw_edges(photo)) and is_drawing(Image.new("RGB", (4, 4)))
    assert (
        not is_drawing(photo) and not is_drawing(photo.convert("L")) and not is_drawing(Image.new("RGB", (4, 4), "red"))
    )
