"""Qwen-Image's control networks against diffusers on freshly drawn models."""

from pathlib import Path

import pytest

from tests.families.qwen_image.test_controls import EACH, check_picture
from tests.parity.draws import draw_additions

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = {kind for kind, _ in EACH}
    return draw_additions("qwen_controls.py", tmp_path_factory.mktemp("drawn"), "image", kinds)


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures(drawn: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture(drawn / kind, way, monkeypatch)
