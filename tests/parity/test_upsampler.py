"""The prompt upsampler against transformers and diffusers on freshly drawn models, and pictures of many sizes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.upsampling.references import prepared_references
from tests.parity.draws import fresh_seed, run_script
from tests.upsampling.test_upsampler import check_boxes, check_captions, check_questions

pytestmark = pytest.mark.parity
SIZES = [(1500, 1000), (64, 511), (1031, 1024), (100, 2390), (2047, 2049), (3100, 16), (15, 200), (724, 740)]


@pytest.fixture(scope="module", params=(1, 2))
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / f"seed-{(seed := fresh_seed())}"
    run_script("upsampler.py", folder, "--seed", seed)
    return folder


def test_questions_captions_and_boxes(drawn: Path) -> None:
    check_questions(drawn)
    check_captions(drawn)
    check_boxes(drawn)


@pytest.mark.parametrize("count", (1, 2, 3))
@pytest.mark.parametrize("mode", ("RGB", "RGBA", "P", "LA"))
def test_references_are_prepared_as_diffusers_does(mode: str, count: int) -> None:
    from diffusers.modular_pipelines.flux3.prompt_upsampler import prepare_references

    noise = np.random.default_rng(1).integers(0, 255, (9, 7, 4), np.uint8)
    for size in SIZES if mode == "RGB" else SIZES[1:2]:
        file = io.BytesIO()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "PNG")
        picture = Image.open(file)
        ours, theirs = prepared_references([picture] * count)[0], prepare_references([picture] * count)[0]
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), size
