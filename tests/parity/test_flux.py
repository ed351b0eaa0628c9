"""FLUX.1 against diffusers on freshly drawn models: other widths, heads, depths, axes and sizes each time."""

from pathlib import Path

import pytest

from tests.families.flux1.test_flux import WAYS, check_blocks, check_latents, check_picture, check_transformer
from tests.parity.draws import draw_parity

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["dev", "schnell"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    return draw_parity("flux.py", tmp_path_factory.mktemp("drawn"), kind, odd=kind == "schnell")


def test_blocks(drawn: Path) -> None:
    check_blocks(drawn)


def test_transformer(drawn: Path) -> None:
    check_transformer(drawn)


def test_latents(drawn: Path) -> None:
    check_latents(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_picture(drawn: Path, way: str) -> None:
    check_picture(drawn, way)
