"""Qwen's language model against the installed transformers, on freshly drawn configs and weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.text.test_qwen import KINDS, check_model, check_text_only

SCRIPT = Path(__file__).parent.parent / "references" / "qwen_text.py"


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path, "--seed", str(seed)], check=True, capture_output=True)
    for kind in KINDS:
        check_model(tmp_path / kind)
    check_text_only(tmp_path / "qwen3_text")
