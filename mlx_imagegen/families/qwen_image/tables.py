"""Where a schedule's modulation comes from: a folded checkpoint, the cache of an earlier run, or the weights.

Reading a third of the transformer takes longer than many a step, and gives the same tables for every prompt, seed and
guidance; so they are kept on disk, under a key of all that they were made from.
"""

import hashlib
from collections.abc import Sequence

import mlx.core as mx

from ...cache import cache_folder, keep, recall
from ...machine import machine
from .files import QwenImageFiles
from .modulation import Tables, modulators, tabulate, unfold


def find(files: QwenImageFiles, timesteps: Sequence[float], dtype: mx.Dtype) -> tuple[Tables, str]:
    """The tables, and where they came from."""
    weights, folded = files.transformer, files.folded
    paths = frozenset[str]().union(*modulators(files.config))
    from_source = bool(weights.folded) and weights.touched(paths)
    if folded is not None and not from_source:
        columns = folded.columns(timesteps)
        assert columns is not None  # the family's schedule is checked against the folder's
        tables = unfold(files.config, weights.fill, columns, files.columns, dtype)
        return tables, f"from the checkpoint, folded for {folded}"
    folder, key = cache_folder() / "modulation", _key(files, paths, timesteps, dtype)
    if (kept := recall(folder, key)) is not None:
        if weights.changes.merge:
            weights.changes.merge.use(weights.component, paths)
        return Tables(**kept), "from cache"
    tables = tabulate(files.config, weights.fill_from_source if from_source else weights.fill, timesteps, dtype)
    reason = keep(folder, key, tables.arrays())
    read = "from the source's weights" if from_source else "from the weights"
    return tables, f"{read}, {reason or 'kept for the next run'}"


def _key(files: QwenImageFiles, paths: frozenset[str], timesteps: Sequence[float], dtype: mx.Dtype) -> str:
    """Versions and the device are part of it: their last bits differ, and a seed must not change its picture."""
    made_by = [value for name, value in machine().items() if name not in ("platform", "python")]
    made_from = (files.transformer.identity(sorted(paths)), files.config, tuple(timesteps), str(dtype))
    return hashlib.sha256(repr((made_by, made_from)).encode()).hexdigest()[:32]
