"""Where a schedule's modulation tables come from: a folded checkpoint, the cache of an earlier run, or the weights.

Reading a third of a transformer takes longer than many a step, and gives the same tables for every prompt, seed and
guidance; so they are kept on disk, under a key of all that they were made from.
In: a component's weights and two ways to make the tables. Out: arrays by name, and where they came from.
Must not know: what the tables mean.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..cache import cache_folder, keep, recall
from ..folding import Folded
from ..layers.modulation import Fill
from ..loading.modules import layers
from ..loading.weights import Weights
from ..machine import machine
from ..precision import compute_dtype
from .base import LastValueCache

Arrays = Mapping[str, mx.array]
Modulation = TypeVar("Modulation")


@dataclass(frozen=True)
class Unfolding:
    """How the tables are read from a folded checkpoint."""

    folded: Folded
    arrays: Callable[[Fill, Sequence[int]], Arrays]  # by the columns of the steps


class ScheduleTables(Generic[Modulation]):
    """The modulation of the schedule that was asked for last, the same for every prompt."""

    def __init__(
        self,
        weights: Weights,
        config: Any,
        modulators: nn.Module,
        tabulate: Callable[..., Arrays],
        steps: Callable[[Arrays], Sequence[Modulation]],
        unfolding: Unfolding | None = None,
    ):
        """`modulators`: the tree of layers that the tables are made from. `tabulate`: (config, fill, timesteps, dtype,
        *more) -> arrays by name. `steps`: those -> a modulation a step, evaluated."""
        self._weights = weights
        self._config = config
        self._paths = frozenset(path for path, _ in layers(modulators))
        self._tabulate = tabulate
        self._steps = steps
        self._unfolding = unfolding
        self._latest = LastValueCache()

    def of(self, timesteps: Sequence[float], *more: float) -> tuple[Sequence[Modulation], str]:
        """A modulation a step, and where they came from. `more`: what else decides them."""
        return self._latest.get((tuple(timesteps), *more), lambda: self._found(timesteps, *more))

    def forget(self) -> None:
        self._latest.forget()

    def _found(self, timesteps: Sequence[float], *more: float) -> tuple[Sequence[Modulation], str]:
        arrays, source = self._arrays(timesteps, *more)
        return self._steps(arrays), source

    def _arrays(self, timesteps: Sequence[float], *more: float) -> tuple[Arrays, str]:
        weights, paths, dtype = self._weights, self._paths, compute_dtype()
        from_source = bool(weights.folded) and weights.changed(paths)
        if self._unfolding is not None and not from_source:
            columns = self._unfolding.folded.columns(timesteps)
            assert columns is not None  # the family's schedule is checked against the folder's
            source = f"from the checkpoint, folded for {self._unfolding.folded}"
            return self._unfolding.arrays(weights.fill, columns), source
        key = _key(weights, paths, (self._config, tuple(timesteps), *more, str(dtype)))
        folder = cache_folder() / "modulation"
        if (kept := recall(folder, key)) is not None:
            weights.note_reuse(paths)
            return kept, "from cache"
        tables = self._tabulate(self._config, weights.fill, timesteps, dtype, *more)
        reason = keep(folder, key, tables)
        read = "from the source's weights" if from_source else "from the weights"
        return tables, f"{read}, {reason or 'kept for the next run'}"


def _key(weights: Weights, paths: frozenset[str], made_from: Sequence[object]) -> str:
    """Versions and the device are part of it: their last bits differ, and a seed must not change its picture."""
    made_by = [value for name, value in machine().items() if name not in ("platform", "python")]
    identity = (weights.identity(sorted(paths)), *made_from)
    return hashlib.sha256(repr((made_by, identity)).encode()).hexdigest()[:32]
