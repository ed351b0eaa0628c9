"""XLabs' IP-Adapter against transformers and diffusers on freshly drawn models."""

from pathlib import Path

import pytest

from tests.families.flux1.test_ip_adapter import KINDS, WAYS, check_features, check_picture
from tests.families.flux1.test_tools import assembled
from tests.parity.draws import fresh_seed, run_script

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = 2 * fresh_seed()
    folder = tmp_path_factory.mktemp(f"ip-adapter-{seed}")  # the seed is in every failure's path
    for kind, number in (("dev", seed), ("schnell", seed + 1)):
        base = folder / kind / "base"
        run_script("inpaint.py", base, "--draw", "flux", "--ways", "--seed", number)
        run_script("flux_ip_adapter.py", folder / kind / "drawn", base / "flux", "--seed", number)
        assembled(folder / kind / "drawn", base / "flux", folder / kind / "whole")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_features(drawn: Path, kind: str) -> None:
    check_features(drawn / kind / "whole")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pictures(drawn: Path, kind: str, way: str) -> None:
    check_picture(drawn / kind / "whole", way)
