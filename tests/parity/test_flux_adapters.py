"""FLUX.1-Redux and XLabs' IP-Adapter against transformers and diffusers on freshly drawn models."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.families.flux1 import test_ip_adapter, test_redux
from tests.parity.draws import draw_adapters

pytestmark = pytest.mark.parity

ADAPTERS: dict[str, ModuleType] = {"redux": test_redux, "ip_adapter": test_ip_adapter}
KINDS = [(name, kind) for name, tests in ADAPTERS.items() for kind in tests.KINDS]
WAYS = [(name, kind, way) for name, kind in KINDS for way in ADAPTERS[name].WAYS]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: draw_adapters(f"flux_{name}.py", tmp_path_factory.mktemp(name), tests.KINDS)
        for name, tests in ADAPTERS.items()
    }


@pytest.mark.parametrize(("adapter", "kind"), KINDS)
def test_features(drawn: dict[str, Path], adapter: str, kind: str) -> None:
    ADAPTERS[adapter].check_features(drawn[adapter] / kind)


@pytest.mark.parametrize(("adapter", "kind", "way"), WAYS)
def test_pictures(drawn: dict[str, Path], adapter: str, kind: str, way: str) -> None:
    ADAPTERS[adapter].check_picture(drawn[adapter] / kind, way)
