"""Qwen-Image's autoencoder against the installed diffusers, on configs, weights and sizes drawn anew at every run."""

import random
from pathlib import Path

import pytest

from tests.qwen_image.test_vae import check_decode, check_encode, check_strips


@pytest.mark.parity
@pytest.mark.parametrize("number", range(4))
def test_fresh_draws(number: int, tmp_path: Path) -> None:
    from tests.references.qwen_vae import draw  # here, since it imports torch

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    draw(tmp_path, seed)
    check_decode(tmp_path)
    check_encode(tmp_path)
    check_strips(tmp_path)
