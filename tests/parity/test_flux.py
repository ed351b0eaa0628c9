"""FLUX.1 against diffusers on freshly drawn models: other widths, heads, depths, axes and sizes each time."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.flux1.test_flux import WAYS, check_blocks, check_latents, check_picture, check_transformer

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).parents[1] / "references/flux.py"


@pytest.fixture(scope="module", params=["dev", "schnell"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = 2 * secrets.randbelow(10**6) + (request.param == "schnell")
    folder = tmp_path_factory.mktemp(f"{request.param}-{seed}")  # the seed is in every failure's path
    subprocess.run([sys.executable, SCRIPT, folder, "--seed", str(seed)], check=True, capture_output=True)
    return folder


def test_blocks(drawn: Path) -> None:
    check_blocks(drawn)


def test_transformer(drawn: Path) -> None:
    check_transformer(drawn)


def test_latents(drawn: Path) -> None:
    check_latents(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_picture(drawn: Path, way: str) -> None:
    check_picture(drawn, way)
