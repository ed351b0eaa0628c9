"""FLUX.1-Redux against transformers and diffusers on freshly drawn models."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.flux1.test_redux import KINDS, WAYS, check_features, check_picture
from tests.families.flux1.test_tools import assembled

pytestmark = pytest.mark.parity
REFERENCES = Path(__file__).parents[1] / "references"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = 2 * secrets.randbelow(10**6)
    folder = tmp_path_factory.mktemp(f"redux-{seed}")  # the seed is in every failure's path
    for kind, number in (("dev", seed), ("schnell", seed + 1)):
        for arguments in (
            ["inpaint.py", folder / kind / "base", "--draw", "flux", "--ways"],
            ["flux_redux.py", folder / kind / "drawn", folder / kind / "base/flux"],
        ):
            command = [sys.executable, REFERENCES / arguments[0], *arguments[1:], "--seed", str(number)]
            subprocess.run(command, check=True, capture_output=True)
        assembled(folder / kind / "drawn", folder / kind / "base/flux", folder / kind / "whole")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_features(drawn: Path, kind: str) -> None:
    check_features(drawn / kind / "whole")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pictures(drawn: Path, kind: str, way: str) -> None:
    check_picture(drawn / kind / "whole", way)
