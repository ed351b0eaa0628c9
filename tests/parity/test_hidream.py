"""HiDream-O1 against transformers and diffusers on freshly drawn weights and pictures."""

from pathlib import Path

import pytest

from tests.families.hidream_o1.test_hidream import check_draw
from tests.parity.draws import run_script


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    run_script("hidream.py", tmp_path, "--seed", seed)
    check_draw(tmp_path)
