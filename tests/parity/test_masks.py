"""Masks against diffusers: its image processor on drawn masks, and its inpaint pipelines on freshly drawn models."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mlx_imagegen.masks import Crop, Region, box_mask, crop_around, feathered, fit
from tests.parity.draws import fresh_seed, run_script
from tests.test_masks import check_inpaint, levels

pytestmark = pytest.mark.parity
KINDS = ("flux", "image", "edit")
WAYS = ("hard", "soft", "all", "cfg", "crop")
SEED = fresh_seed()


def boxes(dice: random.Random) -> tuple[Image.Image, tuple[int, int], int]:
    """A mask of a box, the size at which its part is drawn, and the padding."""
    width, height = dice.randint(20, 150), dice.randint(20, 150)
    left, top = dice.randrange(width - 1), dice.randrange(height - 1)
    box = Crop(left, top, dice.randint(left + 1, width), dice.randint(top + 1, height))
    size = (16 * dice.randint(1, 8), 16 * dice.randint(1, 8))
    return box_mask((width, height), box), size, dice.choice([0, 3, 30])


def test_crops_fits_and_overlays() -> None:
    from diffusers.image_processor import VaeImageProcessor

    processor, dice = VaeImageProcessor(vae_scale_factor=8), random.Random(SEED)
    for _ in range(300):
        mask, size, padding = boxes(dice)
        soft = mask.filter(ImageFilter.GaussianBlur(2))
        assert crop_around(mask, size, padding) == processor.get_crop_region(mask, *size, pad=padding), SEED
        crop = crop_around(soft, size, padding)
        noise = np.random.default_rng(SEED).integers(0, 255, (mask.height, mask.width, 3), np.uint8)
        picture, drawn = Image.fromarray(noise), Image.effect_noise(size, 60).convert("RGB")
        fitted = fit(picture.crop(crop), size)
        assert np.array_equal(levels(fitted), levels(processor._resize_and_fill(picture.crop(crop), *size))), SEED
        ours = levels(Region(picture, soft, crop).paste(drawn))
        theirs = levels(processor.apply_overlay(soft, picture, drawn, crop))
        unfeathered = levels(feathered(soft)) == levels(soft)
        assert np.abs(ours - theirs)[unfeathered].max(initial=0) <= 2, SEED


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"inpaint-{SEED}")  # the seed is in every failure's path
    run_script("inpaint.py", folder, "--seed", SEED, "--draw", *KINDS)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_inpainting(drawn: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_inpaint(drawn / kind, way, monkeypatch)
