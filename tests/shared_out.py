"""Ranks as threads of one process: what is shared out over several machines, without a network.

A sum over the ranks waits for all of them, as MLX's does, and adds in the ranks' order.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from mlx_imagegen.layers.sharing import AllSum, Sharing

Value = TypeVar("Value")
SECONDS = 60  # none waits longer for another


class Ring:
    def __init__(self, parts: tuple[int, ...]):
        self.parts = parts
        self.sums: list[tuple[int, ...]] = []  # the shapes of what was summed
        self._barrier = threading.Barrier(len(parts), timeout=SECONDS)
        self._arrays: list[Any] = [None] * len(parts)

    def sharing(self, rank: int) -> Sharing:
        return Sharing(rank, self.parts, self._all_sum(rank))

    def _all_sum(self, rank: int) -> AllSum:
        def all_sum(x: mx.array) -> mx.array:
            mx.eval(x)
            self._arrays[rank] = x
            self._barrier.wait()
            total = sum((each.astype(mx.float32) for each in self._arrays), mx.zeros(x.shape)).astype(x.dtype)
            mx.eval(total)
            if rank == 0:
                self.sums.append(x.shape)
            self._barrier.wait()
            return total

        return all_sum

    def run(self, work: Callable[[Sharing], Value]) -> list[Value]:
        """What every rank's `work` gives, by rank; the first error, if one has failed."""
        results: list[Any] = [None] * len(self.parts)
        errors: list[BaseException] = []

        def run_rank(rank: int) -> None:
            try:
                results[rank] = work(self.sharing(rank))
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(len(self.parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results
