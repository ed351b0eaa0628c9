"""FLUX.2 against diffusers on freshly drawn models: other widths, heads, axes and sizes each time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.families.editing import Editing
from mlx_imagegen.hub.manifest import manifests
from tests.families.flux2.test_flux2 import (
    WAYS,
    check_blocks,
    check_ids,
    check_kept,
    check_picture,
    check_states,
    check_transformer,
)
from tests.parity.draws import draw_kind

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=WAYS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_kind("flux2.py", tmp_path_factory.mktemp("drawn"), request.param)


def test_blocks(drawn: Path) -> None:
    check_blocks(drawn)


def test_transformer(drawn: Path) -> None:
    check_transformer(drawn)


def test_ids_and_states(drawn: Path) -> None:
    check_ids(drawn)
    check_states(drawn)


def test_pictures(drawn: Path) -> None:
    kind = drawn.name.split("-")[0]
    for way in WAYS[kind]:
        check_picture(drawn, way)
    if kind == "klein":
        check_kept(drawn)


@pytest.mark.parametrize("kind", WAYS)
def test_the_real_number_of_text_tokens(kind: str, tmp_path: Path) -> None:
    folder = draw_kind(
        "flux2.py", tmp_path, kind, "--length", "512" if kind == "klein" else "488"
    )  # the script adds dev's template
    check_states(folder)
    check_picture(folder, "seed")


@pytest.mark.parametrize("size", [(1500, 1000), (64, 511), (1031, 1024), (300, 2390), (1024, 1024)])
def test_references_are_brought_down_and_cut_as_diffusers_does(size: tuple[int, int]) -> None:
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    noise = np.random.default_rng(1).integers(0, 255, (9, 7, 3), np.uint8)
    picture, processor = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), Flux2ImageProcessor()
    processor.check_image_input(picture)
    theirs = processor._resize_if_exceeds_area(picture)
    width, height = (side // 16 * 16 for side in theirs.size)
    pixels = processor.preprocess(theirs, height=height, width=width, resize_mode="crop")[0]
    expected = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    (ours,) = Editing.of(manifests()["flux2-klein-4b"]).prepared([picture], 16)
    assert np.array_equal(np.asarray(ours), expected)
