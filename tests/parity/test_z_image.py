"""Z-Image against diffusers on freshly drawn models: other widths, heads, depths, axes and sizes each time."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.z_image.test_z_image import (
    GUIDED,
    WAYS,
    check_blocks,
    check_latents,
    check_picture,
    check_schedule,
    check_text,
    check_transformer,
)

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).parents[1] / "references/z_image.py"


@pytest.fixture(scope="module", params=["base", "turbo"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = 2 * secrets.randbelow(10**6) + (request.param == "turbo")
    folder = tmp_path_factory.mktemp(f"{request.param}-{seed}")  # the seed is in every failure's path
    subprocess.run([sys.executable, SCRIPT, folder, "--seed", str(seed)], check=True, capture_output=True)
    return folder


def test_parts(drawn: Path) -> None:
    check_text(drawn)
    check_blocks(drawn)
    check_transformer(drawn, "odd")
    check_transformer(drawn, "even")
    check_schedule(drawn)
    check_latents(drawn)


@pytest.mark.parametrize("way", (*WAYS, *GUIDED))
def test_picture(drawn: Path, way: str) -> None:
    if way in GUIDED and "base-" not in drawn.name:
        pytest.skip("Turbo takes no guidance")
    check_picture(drawn, way)
