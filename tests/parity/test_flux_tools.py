"""FLUX.1's tools against diffusers on freshly drawn models: Fill, Control and Kontext."""

from pathlib import Path

import pytest

from tests.families.flux1.test_tools import EACH, check_picture
from tests.parity.draws import draw_additions

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = {kind for kind, _ in EACH}
    return draw_additions("flux_tools.py", tmp_path_factory.mktemp("drawn"), "flux", kinds)


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures(drawn: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture(drawn / kind, way, monkeypatch)
