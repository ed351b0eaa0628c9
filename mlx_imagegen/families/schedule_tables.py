"""Where a schedule's modulation tables come from: a folded checkpoint, the cache of an earlier run, or the weights.

Reading a third of a transformer takes longer than many a step, and gives the same tables for every prompt, seed and
guidance; so they are kept on disk, under a key of all that they were made from.
In: a component's weights and two ways to make the tables. Out: arrays by name, and where they came from.
Must not know: what the tables mean.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from ..cache import cache_folder, keep, recall
from ..folding import Folded
from ..layers.modulation import Fill
from ..loading.weights import Weights
from ..machine import machine

Arrays = Mapping[str, mx.array]


def find_tables(
    weights: Weights,
    paths: frozenset[str],
    made_from: Sequence[object],
    timesteps: Sequence[float],
    tabulate: Callable[[Fill], Arrays],
    unfold: Callable[[Fill, Sequence[int]], Arrays] | None = None,
    folded: Folded | None = None,
) -> tuple[Arrays, str]:
    """`paths`: the layers that the tables are made from. `made_from`: what else decides them (config, timesteps,
    dtype). `unfold`: from a folded checkpoint, by the columns of the steps; families without such have none."""
    from_source = bool(weights.folded) and weights.changed(paths)
    if folded is not None and unfold is not None and not from_source:
        columns = folded.columns(timesteps)
        assert columns is not None  # the family's schedule is checked against the folder's
        return unfold(weights.fill, columns), f"from the checkpoint, folded for {folded}"
    folder, key = cache_folder() / "modulation", _key(weights, paths, made_from)
    if (kept := recall(folder, key)) is not None:
        weights.note_reuse(paths)
        return kept, "from cache"
    tables = tabulate(weights.fill)
    reason = keep(folder, key, tables)
    read = "from the source's weights" if from_source else "from the weights"
    return tables, f"{read}, {reason or 'kept for the next run'}"


def _key(weights: Weights, paths: frozenset[str], made_from: Sequence[object]) -> str:
    """Versions and the device are part of it: their last bits differ, and a seed must not change its picture."""
    made_by = [value for name, value in machine().items() if name not in ("platform", "python")]
    identity = (weights.identity(sorted(paths)), *made_from)
    return hashlib.sha256(repr((made_by, identity)).encode()).hexdigest()[:32]
