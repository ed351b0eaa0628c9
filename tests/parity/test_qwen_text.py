"""Qwen's language model against the installed transformers, on freshly drawn configs and weights."""

from pathlib import Path

import pytest

from tests.parity.draws import run_script
from tests.text.test_qwen import KINDS, check_model, check_text_only


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    run_script("qwen_text.py", tmp_path, "--seed", seed)
    for kind in KINDS:
        check_model(tmp_path / kind)
    check_text_only(tmp_path / "qwen3_text")
