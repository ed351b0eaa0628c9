"""Qwen-Image against diffusers on freshly drawn models: other widths, heads, axes and sizes each time."""

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
from tests.parity.draws import draw_kind
from tests.quantization.test_fold import check_folded

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=WAYS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_kind("qwen.py", tmp_path_factory.mktemp("drawn"), request.param)


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
    folder = draw_kind("qwen.py", tmp_path, "image")
    check_ids(folder)
    check_merged_weights(folder)


@pytest.mark.parametrize("kind", ["edit", "zero"])
def test_editing_at_the_real_sizes(kind: str, tmp_path: Path) -> None:
    """References of 1024 x 1024 pixels for the latents, and of 1024 (first version) or 384 for the language model."""
    folder = draw_kind("qwen.py", tmp_path, kind, "--full-size")
    check_features(folder)
    check_picture(folder, "cfg")
