"""Qwen-Image's autoencoder against the installed diffusers, on configs, weights and sizes drawn anew at every run."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.qwen_image.test_vae import check_decode, check_encode, check_strips

SCRIPT = Path(__file__).parent.parent / "references" / "qwen_vae.py"


@pytest.mark.parity
@pytest.mark.parametrize("draw", range(4))
def test_fresh_draws(draw: int, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    subprocess.run([sys.executable, SCRIPT, tmp_path, "--seed", str(seed)], check=True, capture_output=True)
    check_decode(tmp_path)
    check_encode(tmp_path)
    check_strips(tmp_path)
