"""HiDream-O1 against transformers and diffusers on freshly drawn weights and pictures."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.hidream_o1.test_hidream import check_draw

SCRIPT = Path(__file__).parent.parent / "references" / "hidream.py"


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path, "--seed", str(seed)], check=True, capture_output=True)
    check_draw(tmp_path)
