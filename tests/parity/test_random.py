"""Noise against torch's generator, for shapes and seeds drawn again."""

import numpy as np
import pytest

from mlx_imagegen.random import SEED_LIMIT, TorchGenerator

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("attempt", range(8))
def test_noise_equals_torch(attempt: int) -> None:
    import torch

    dice = np.random.default_rng()
    seed = int(dice.integers((SEED_LIMIT, 2**63)[attempt % 2]))  # ComfyUI draws as long ones
    shape = (1, int(dice.integers(1, 17)), int(dice.integers(4, 160)), int(dice.integers(4, 160)))
    generator = torch.Generator("cpu").manual_seed(seed)
    ours = TorchGenerator(seed)
    for _ in range(2):
        expected = torch.randn(shape, generator=generator).numpy()
        np.testing.assert_allclose(
            ours.normal(shape), expected, rtol=0, atol=1e-6, err_msg=f"seed {seed}, shape {shape}"
        )
