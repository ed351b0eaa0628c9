"""Layers that are needed one after another for a moment: several threads read them ahead, or they are kept in memory.

In: a component's weights, empty layers and their paths. Out: `Fill`s, which give each layer filled and evaluated.
Must not know: what the layers are for, whether there is room to keep them.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from ..layers.linear import Linear, Packing
from .modules import layers, own_parameters
from .weights import Weights, bind

Fill = Callable[[nn.Module, str], nn.Module]
# The layers of a module as they are stored: 16 bits stay 16 bits.
StoredLayers = list[tuple[Mapping[str, mx.array], Packing | None]]
# How many layers are read at a time, and so the most that are in memory before they are used. One thread alone copies
# and converts while the disk waits.
READERS = 3


@contextmanager
def reading_ahead(fill: Fill, modules: Iterable[tuple[nn.Module, str]]) -> Iterator[Fill]:
    """A `fill` for these layers in this order; they are made when they are read, so that none stays longer."""
    left, waiting, device = iter(modules), deque[tuple[str, Future[nn.Module]]](), mx.default_device()

    def read(layer: nn.Module, path: str) -> nn.Module:
        with mx.stream(device):  # each thread has a stream of its own
            return fill(layer, path)

    def submit(count: int) -> None:
        for layer, path in itertools.islice(left, count):
            waiting.append((path, _readers().submit(read, layer, path)))

    def next_filled(_: nn.Module, path: str) -> nn.Module:
        submit(1)  # not earlier: the layer before has been used by now
        expected, future = waiting.popleft()
        assert expected == path, f"{expected} was read ahead, {path} is asked for"
        return future.result()

    submit(READERS - 1)
    try:
        yield next_filled
    finally:
        for _, future in waiting:
            future.cancel()
        wait([future for _, future in waiting])


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """The same threads for the whole process: MLX makes a stream for every thread."""
    return ThreadPoolExecutor(READERS, thread_name_prefix="reader")


class KeptLayers:
    """Fills layers from a component's weights; while `keep` is set, each is read once."""

    def __init__(self, weights: Weights):
        self._weights = weights
        self._kept: dict[str, StoredLayers] = {}
        self._keep = False

    @property
    def keep(self) -> bool:
        return self._keep

    @keep.setter
    def keep(self, keep: bool) -> None:
        self._keep = keep
        if not keep:
            self.forget()

    def forget(self) -> None:
        """The weights have become others."""
        self._kept = {}

    def fill(self, module: nn.Module, path: str) -> nn.Module:
        """In float32, with the same numbers whether they are read or kept."""
        if not self._keep:
            return self._weights.fill(module, path)
        if path not in self._kept:
            self._weights.fill(module, path, None)
            self._kept[path] = [
                (own_parameters(layer), layer.packing if isinstance(layer, Linear) else None)
                for _, layer in layers(module)
            ]
        for (_, layer), (values, packing) in zip(layers(module), self._kept[path], strict=True):
            bind(layer, values, packing, mx.float32)
        return module
