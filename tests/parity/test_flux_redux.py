"""FLUX.1-Redux against transformers and diffusers on freshly drawn models."""

from pathlib import Path

import pytest

from tests.families.flux1.test_redux import KINDS, WAYS, check_features, check_picture
from tests.parity.draws import draw_adapters

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_adapters("flux_redux.py", tmp_path_factory.mktemp("redux"), KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_features(drawn: Path, kind: str) -> None:
    check_features(drawn / kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pictures(drawn: Path, kind: str, way: str) -> None:
    check_picture(drawn / kind, way)
