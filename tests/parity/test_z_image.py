"""Z-Image against diffusers on freshly drawn models: other widths, heads, depths, axes and sizes each time."""

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
from tests.parity.draws import draw_parity

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["base", "turbo"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    return draw_parity("z_image.py", tmp_path_factory.mktemp("drawn"), kind, odd=kind == "turbo")


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
