"""FLUX.3 against diffusers on freshly drawn models: other widths, heads, axes and sizes each time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.families.flux3.editing import Editing
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.job import resolve
from tests.families.flux3.test_flux3 import (
    WAYS,
    check_blocks,
    check_ids,
    check_picture,
    check_states,
    check_transformer,
)
from tests.parity.draws import draw_kind

pytestmark = pytest.mark.parity
SIZES = [(1500, 1000), (64, 511), (1031, 1024), (300, 2390), (5000, 3000), (2047, 2049), (4100, 40), (15, 200)]


@pytest.fixture(scope="module", params=WAYS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_kind("flux3.py", tmp_path_factory.mktemp("drawn"), request.param)


def test_blocks_and_transformer(drawn: Path) -> None:
    check_blocks(drawn)
    check_transformer(drawn)


def test_ids_states_and_pictures(drawn: Path) -> None:
    kind = drawn.name.split("-")[0]
    if kind == "klein":
        check_ids(drawn)
        check_states(drawn)
    for way in WAYS[kind]:
        check_picture(drawn, way)


def test_references_are_prepared_as_diffusers_does() -> None:
    """Alone, with mirrored edges, and what is kept of the picture made; and one of several, cut."""
    from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor

    processor, manifest = Flux3ImageProcessor(), manifests()["flux3-klein"]
    editing = Editing.of(manifest)
    noise = np.random.default_rng(1).integers(0, 255, (9, 7, 3), np.uint8)
    for size in SIZES:
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        pixels, kept = processor.preprocess(picture, resize_mode="fill")
        (ours,) = editing.prepared([picture], 16)
        assert np.array_equal(np.asarray(ours), levels(pixels)), size
        assert editing.sizes([size], 16) == [ours.size]
        job = resolve(manifest, 16, "a fox", 1, references=[picture])[0]
        assert (job.settings.width, job.settings.height) == ours.size
        assert (job.crop or (0, 0, *ours.size)) == kept["reference_crop"]
        if min(size) >= 64:
            theirs = levels(processor.preprocess(picture, resize_mode="crop")[0])
            assert np.array_equal(np.asarray(editing.prepared([picture, picture], 16)[1]), theirs), size


def levels(pixels: object) -> np.ndarray:
    array = pixels[0].permute(1, 2, 0).numpy()  # type: ignore[index]
    return ((array + 1) * 127.5).round().astype(np.uint8)
