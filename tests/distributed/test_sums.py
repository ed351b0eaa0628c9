"""Sums over the ranks: timed in one step of each picture alone."""

from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_imagegen.distributed import layers
from mlx_imagegen.distributed.layers import Sums

SECONDS = 0.5  # of a sum


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    now = 0.0

    def all_sum(x: mx.array) -> mx.array:
        nonlocal now
        now += SECONDS
        return x + x

    monkeypatch.setattr(layers, "time", SimpleNamespace(perf_counter=lambda: now))
    return Sums(all_sum)


def test_waiting_is_measured_in_the_second_step_alone(sums: Sums) -> None:
    for _ in range(2):  # pictures
        for _ in range(3):
            assert sums(mx.ones(4)).tolist() == [2.0] * 4
            sums(mx.ones(2))
            sums.end_step()
        waited = {"waited_seconds": 2 * SECONDS, "waited_steps": 1}
        assert sums.take_statistics() == {"sums": 6, "summed_bytes": 3 * 24, **waited}


def test_a_picture_of_one_step_has_no_waiting_measured(sums: Sums) -> None:
    sums(mx.ones(4))
    sums.end_step()
    assert sums.take_statistics() == {"sums": 1, "summed_bytes": 16, "waited_seconds": 0.0, "waited_steps": 0}
