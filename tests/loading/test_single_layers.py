"""Layers read ahead by several threads, and layers that are kept."""

import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.single_layers import READERS, KeptLayers, reading_ahead
from mlx_imagegen.loading.weights import Weights, open_weights

COUNT = 9
SECONDS = 20  # until a test that waits in vain gives up


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Linear(8, 16) for _ in range(COUNT)]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    dice = np.random.default_rng(0)
    tensors = {
        f"layers.{index}.{name}": mx.array(dice.standard_normal(shape)).astype(mx.bfloat16)
        for index in range(COUNT)
        for name, shape in (("weight", (16, 8)), ("bias", (16,)))
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    return open_weights("transformer", open_checkpoint(tmp_path), [Stack()])


def empty() -> Iterator[tuple[nn.Module, str]]:
    return ((Linear(8, 16), f"layers.{index}") for index in range(COUNT))


def test_they_come_in_order_and_filled(weights: Weights) -> None:
    with reading_ahead(weights.fill, empty()) as ahead:
        found = [ahead(layer, path) for layer, path in empty()]
    for layer, (other, path) in zip(found, empty(), strict=True):
        weights.fill(other, path)
        assert mx.array_equal(layer.weight, other.weight) and layer.weight.dtype == mx.float32


def test_several_threads_read_but_not_far_ahead(weights: Weights) -> None:
    together, running, most = threading.Barrier(READERS - 1), [0], [0]

    def fill(layer: nn.Module, path: str) -> nn.Module:
        running[0] += 1
        most[0] = max(most[0], running[0])
        if path in [f"layers.{index}" for index in range(READERS - 1)]:
            together.wait(SECONDS)  # one thread alone would wait here for ever
        return weights.fill(layer, path)

    with reading_ahead(fill, empty()) as ahead:
        for done, (layer, path) in enumerate(empty(), 1):
            ahead(layer, path)
            assert most[0] <= done + READERS - 1
    assert running[0] == COUNT


def test_a_layer_that_cannot_be_read_raises_where_it_is_asked_for(weights: Weights) -> None:
    def fill(layer: nn.Module, path: str) -> nn.Module:
        if path == "layers.2":
            raise OSError("the disk went away")
        return weights.fill(layer, path)

    with reading_ahead(fill, empty()) as ahead:
        first, second, third = [*empty()][:3]
        ahead(*first)
        ahead(*second)
        with pytest.raises(OSError, match="the disk went away"):
            ahead(*third)


def test_whoever_stops_leaves_no_reader_behind(weights: Weights) -> None:
    started: list[str] = []

    def fill(layer: nn.Module, path: str) -> nn.Module:
        started.append(path)
        return weights.fill(layer, path)

    with pytest.raises(KeyboardInterrupt), reading_ahead(fill, empty()) as ahead:
        ahead(*next(empty()))
        raise KeyboardInterrupt
    count = len(started)
    assert count <= READERS
    with reading_ahead(weights.fill, empty()) as ahead:  # the threads are free again
        ahead(*next(empty()))
    assert len(started) == count


def test_kept_layers_are_read_once_and_give_the_same_numbers(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read_layer = Weights.read_layer
    monkeypatch.setattr(
        Weights, "read_layer", lambda self, layer, path: reads.append(path) or read_layer(self, layer, path)
    )
    kept, x = KeptLayers(weights), mx.random.normal((3, 8), key=mx.random.key(0))

    def product() -> mx.array:
        out: mx.array = kept.fill(Linear(8, 16), "layers.1")(x)
        mx.eval(out)
        return out

    read = product()
    product()
    assert len(reads) == 2
    kept.keep = True
    assert mx.array_equal(product(), read) and mx.array_equal(product(), read) and len(reads) == 3
    ((values, _),) = kept._kept["layers.1"]
    assert values["weight"].dtype == mx.bfloat16, "half of what float32 would take"
    kept.forget()
    product()
    assert len(reads) == 4
    kept.keep = False
    product()
    assert len(reads) == 5
