"""Qwen-Image against diffusers on freshly drawn models: other widths, heads, axes and sizes each time."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.qwen_image.test_qwen_image import (
    WAYS,
    check_block,
    check_features,
    check_ids,
    check_merged_weights,
    check_picture,
    check_transformer,
)
from tests.quantization.test_fold import check_folded

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).parents[1] / "references/qwen.py"


def draw(folder: Path, kind: str, *options: str) -> Path:
    seed = str(secrets.randbelow(10**6))
    folder = folder / f"{kind}-{seed}"  # the seed is in every failure's path
    subprocess.run(
        [sys.executable, SCRIPT, folder, "--kind", kind, "--seed", seed, *options], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module", params=WAYS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("qwen"), request.param)


def test_block(drawn: Path) -> None:
    check_block(drawn)


def test_transformer(drawn: Path) -> None:
    check_transformer(drawn)


def test_text_features(drawn: Path) -> None:
    check_features(drawn)


def test_pictures(drawn: Path) -> None:
    for way in WAYS[drawn.name.split("-")[0]]:
        check_picture(drawn, way)


def test_folded(drawn: Path, tmp_path: Path) -> None:
    check_folded(drawn, "cfg", tmp_path / "made")


def test_ids_and_lightning_merged(tmp_path: Path) -> None:
    folder = draw(tmp_path, "image")
    check_ids(folder)
    check_merged_weights(folder)


@pytest.mark.parametrize("kind", ["edit", "zero"])
def test_editing_at_the_real_sizes(kind: str, tmp_path: Path) -> None:
    """References of 1024 x 1024 pixels for the latents, and of 1024 (first version) or 384 for the language model."""
    folder = draw(tmp_path, kind, "--full-size")
    check_features(folder)
    check_picture(folder, "cfg")
