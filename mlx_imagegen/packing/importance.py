"""How much each input of a linear layer counts, as far as the weights alone say it.

A layer that reads a norm's output is given inputs of the size of that norm's own weight: all channels left the division
with about the same size. An error in a column of such a layer comes out gamma squared as large, and the search for
scales can spend its steps where they show. Nothing has to be drawn for it. It pays where pictures come out, in a model
whose last norm has made some channels loud; inside the decoders, T5's and Qwen's among them, it measured as no gain and
no loss (benchmarks/LOG.md), so it is not done there.
In: a layer's path, the family's norms, the tensors next to it. Out: [columns], or None where nothing is known.
Must not know: bits, recipes.
"""

import math
import re
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from ..loading.tensors import NamedTensors

FLOOR = 0.01  # of the mean: a channel that the norm shuts out is still rounded to something near
# A linear layer's path (a regular expression) -> the weight of the norm whose output it reads (a template).
Norms = Mapping[str, str]


def importance_in(named: NamedTensors, path: str, norms: Norms) -> np.ndarray | None:
    """For the linear layer at `path` of a checkpoint."""
    return importance(path, norms, lambda name: named.slices[name].read() if name in named.slices else None)


def importance(path: str, norms: Norms, tensor: Callable[[str], mx.array | None]) -> np.ndarray | None:
    """For the linear layer at `path`. `tensor`: one of its component's by name, or None if there is none."""
    matches = ((re.fullmatch(linear, path), norm) for linear, norm in norms.items())
    gamma = next((tensor(found.expand(norm)) for found, norm in matches if found), None)
    if gamma is None:
        return None
    squares = np.array(gamma.astype(mx.float32)).reshape(-1) ** 2
    # fsum: the same number on every machine, however wide its vectors are
    return squares + np.float32(FLOOR * math.fsum(squares) / len(squares) + 1e-20)
