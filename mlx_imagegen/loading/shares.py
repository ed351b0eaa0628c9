"""One machine's part of a layer that is shared out over several: read from the file, or cut out of the complete layer.

In: where a layer's tensors lie, and its `Share`. Out: `LayerTensors` with that part alone, packed weights with the
scales and biases of their groups. A weight that is only to be read is read so: its rows, or its columns out of a few
rows at a time. One that is changed or packed while it is loaded is so in full, and cut afterwards.
Must not know: modules' trees, how machines are connected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..layers.linear import Packing
from ..layers.sharing import LEAST_GROUP, Cut, Share, Sharing
from .tensor import Tensor, as_mlx
from .tensors import NamedTensors, Shape
from .transforms import LayerTensors

BLOCK_BYTES = 1 << 25  # of rows whose columns are read at a time

Runs = Sequence[tuple[int, int]]


def refusal(path: str, packing: Packing | None, cut: Cut, sharing: Sharing) -> str | None:
    """Why a layer cannot be shared out so; None where it can."""
    if sharing.lacks_units(cut):
        return f"'{path}' has {min(span.units for span in cut.spans)} heads or groups of channels"
    if packing is None or cut.axis == 0:
        return None
    finest = LEAST_GROUP if packing.mode == "affine" else packing.group_size
    shares = (replace(sharing, rank=rank).share_of(cut) for rank in range(len(sharing.parts)))
    if any(place % finest for share in shares for run in share.runs for place in run):
        return f"'{path}' is packed in groups of {packing.group_size}, which heads cross"
    return None


def read_share(named: NamedTensors, name: str, shape: Shape, share: Share) -> mx.array | None:
    """The part of a tensor, `shape` in full, that is `share`'s; None where it can only be cut out of the full one."""
    if len(shape) <= share.cut.axis:
        return named.read(name, shape)  # a bias, which is added to the sum
    runs, tensor = share.scaled(shape[share.cut.axis]), named.slices.get(name)
    if runs is None or tensor is None or tensor.shape != shape:
        return None
    if share.cut.axis == 0:
        parts = [tensor.read(start, stop - start) for start, stop in runs]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return _columns(tensor, runs)


def _columns(tensor: Tensor, runs: Runs) -> mx.array:
    rows, places = tensor.shape[0], _places(runs)
    step = max(1, BLOCK_BYTES // (tensor.nbytes // rows))
    first = tensor.bytes(0, min(step, rows))[:, places]
    out = np.empty((rows, len(places)), first.dtype)
    out[: len(first)] = first
    for row in range(step, rows, step):
        out[row : row + step] = tensor.bytes(row, min(step, rows - row))[:, places]
    return as_mlx(out, tensor.dtype)


def cut_out(tensors: LayerTensors, share: Share) -> LayerTensors:
    """That part of a complete layer."""
    values, packing = tensors.values, tensors.packing
    if packing and packing != (held := held_packing(packing, values["scales"].shape, share)):
        values, packing = finer_groups(values, packing), held
    return replace(tensors, values={name: _part(value, share) for name, value in values.items()}, packing=packing)


def _part(value: mx.array, share: Share) -> mx.array:
    axis = share.cut.axis
    if value.ndim <= axis:
        return value
    runs = share.scaled(value.shape[axis])
    assert runs is not None  # check_cuts refuses less
    return mx.take(value, mx.array(_places(runs)), axis=axis)  # a copy: a slice would keep all of it in memory


def _places(runs: Runs) -> np.ndarray:
    return np.concatenate([np.arange(*run) for run in runs])


def held_packing(packing: Packing, scales: Shape, share: Share) -> Packing:
    """How the part is packed: in finer groups, where a cut falls within one. `scales`: those of the complete layer."""
    cuts_groups = share.cut.axis == 1 and share.scaled(scales[1]) is None
    return replace(packing, group_size=LEAST_GROUP) if cuts_groups else packing


def finer_groups(values: Mapping[str, mx.array], packing: Packing) -> dict[str, mx.array]:
    """The same numbers in groups of LEAST_GROUP: each has the scale and bias of the one that it was a part of."""
    times = packing.group_size // LEAST_GROUP
    grids = {name: mx.repeat(values[name], times, axis=1) for name in packing.parts if name != "weight"}
    return {**values, **grids}
