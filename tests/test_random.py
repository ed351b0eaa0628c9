"""Noise against torch's own: stored samples here, fresh seeds and shapes under `make parity`."""

from pathlib import Path

import numpy as np
import pytest

from mlx_imagegen.random import TorchGenerator

STORED = np.load(Path(__file__).parent / "data" / "random" / "torch.npz")
TOLERANCE = 1e-6  # sines and logarithms differ in their last bits


@pytest.mark.parametrize("case", sorted({name.rpartition(" ")[0] for name in STORED.files}))
def test_two_draws_from_one_stream_equal_torch(case: str) -> None:
    seed, shape = case.split(" ")
    stream = TorchGenerator(int(seed))
    for name in ("first", "second"):
        drawn = stream.normal(tuple(map(int, shape.split(",")))).reshape(-1)
        expected = STORED[f"{case} {name}"]
        ours = drawn if drawn.size == expected.size else np.concatenate([drawn[:64], drawn[-64:]])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def test_equal_seeds_give_equal_noise_and_others_do_not() -> None:
    shape = (1, 16, 4, 4)
    assert np.array_equal(TorchGenerator(3).normal(shape), TorchGenerator(3).normal(shape))
    assert not np.allclose(TorchGenerator(3).normal(shape), TorchGenerator(4).normal(shape))


def test_float32_arrays_of_the_shape() -> None:
    array = TorchGenerator(0).randn((2, 3, 5))
    assert array.shape == (2, 3, 5)
    assert str(array.dtype) == "mlx.core.float32"


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="15 values"):
        TorchGenerator(0).normal((3, 5))
