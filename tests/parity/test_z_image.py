"""Z-Image and its Omni edition against diffusers on freshly drawn models: other widths, heads, depths, axes and sizes
each time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from tests.families.z_image.test_omni import (
    COUNTS,
    DATA,
    PICTURES,
    check_omni_picture,
    check_omni_transformer,
    check_pieces,
    check_seen,
)
from tests.families.z_image.test_z_image import (
    GUIDED,
    WAYS,
    check_blocks,
    check_latents,
    check_picture,
    check_schedule,
    check_text,
    check_transformer,
)
from tests.parity.draws import draw_parity

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["base", "turbo"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    return draw_parity("z_image.py", tmp_path_factory.mktemp("drawn"), kind, odd=kind == "turbo")


def test_parts(drawn: Path) -> None:
    check_text(drawn)
    check_blocks(drawn)
    check_transformer(drawn, "odd")
    check_transformer(drawn, "even")
    check_schedule(drawn)
    check_latents(drawn)


@pytest.mark.parametrize("way", (*WAYS, *GUIDED))
def test_picture(drawn: Path, way: str) -> None:
    if way in GUIDED and "base-" not in drawn.name:
        pytest.skip("Turbo takes no guidance")
    check_picture(drawn, way)


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_parity("z_image_omni.py", tmp_path_factory.mktemp("drawn"), "omni", odd=False)


def test_omni_parts(omni: Path) -> None:
    check_pieces(omni)
    check_seen(omni)
    for way in COUNTS:
        check_omni_transformer(omni, way)


@pytest.mark.parametrize("way", PICTURES)
def test_omni_picture(omni: Path, way: str) -> None:
    check_omni_picture(omni, way)


@pytest.mark.parametrize("size", [(1500, 1000), (64, 511), (1031, 1024), (300, 2390), (1024, 1024)])
@pytest.mark.parametrize("made", [None, (512, 512), (1536, 1024)])
def test_references_are_scaled_and_patched_as_diffusers_and_transformers_do(
    size: tuple[int, int], made: tuple[int, int] | None
) -> None:
    """`made`: the size asked for; without one it follows from the reference."""
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    noise = np.random.default_rng(1).integers(0, 255, (9, 7, 3), np.uint8)
    picture, limit = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), 1024 * 1024
    theirs = picture
    if size[0] * size[1] > limit:
        theirs = Flux2ImageProcessor._resize_to_target_area(picture, made[0] * made[1] if made else limit)
    files = load(DATA).family.files.references
    (scaled,) = files.scaled_sizes([size], made or tuple(side // 16 * 16 for side in theirs.size), 16)
    assert scaled == theirs.size
    config = files.pixels
    processor = Siglip2ImageProcessorPil(patch_size=config.patch_size, max_num_patches=config.max_num_patches)
    expected = processor(images=[theirs], return_tensors="np")
    values, grid = config.patches(picture.resize(scaled, Image.Resampling.LANCZOS))
    assert grid == tuple(expected["spatial_shapes"][0])
    np.testing.assert_allclose(values, expected["pixel_values"][0, : len(values)], atol=1e-6)
