"""Counts the kernel launches and bytes of an MLX function on a GPU from its graph; nothing is computed.

In: a function and its arrays, unevaluated. Out: a `Cost`. Call `pretend_gpu` before the models are imported: from then
on `mx.fast` and `mx.compile` give one operation each, as on a GPU; the CPU would split them.
The rules are Metal's, from the source of MLX 0.32: views are free, a concatenation copies each of its parts, and an
operation that needs contiguous rows copies others first. Arrays are modelled by NumPy views, which know their strides.
What is computed twice from the same arrays is counted once (MLX simplifies the graph that it exports). A compiled
function counts as one kernel, which holds for pointwise functions; this library and mflux compile no others.
Must not know: models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

FREE = {"Full", "Depends", "StopGradient"}
VIEWS = "Transpose Reshape Flatten Unflatten ExpandDims Squeeze Broadcast Slice Split View".split()
PRODUCTS = {"Matmul", "AddMM", "QuantizedMatmul"}
ATTENTION, NORMS = "ScaledDotProductAttention", {"RMSNorm", "LayerNorm"}
ITEMS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
Arrays = list[np.ndarray]


@dataclass
class Cost:
    """Launches and bytes outside products and attention by kind; what those two do, in floating-point operations."""

    launches: int = 0  # of all kinds, products and attention included
    bytes: int = 0
    product_flops: int = 0
    attention_flops: int = 0
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # kind -> launches, bytes

    def add(self, kind: str, moved: int, launches: int = 1) -> None:
        counted, before = self.kinds.get(kind, (0, 0))
        self.kinds[kind] = counted + launches, before + moved
        self.launches += launches
        self.bytes += moved


_fused: list[str] = []  # what the operations of `_one_operation` are called, by their marker's size


def pretend_gpu() -> None:
    """Makes this process build graphs as on a GPU. They can be counted, not evaluated."""
    gpu = SimpleNamespace(type=mx.DeviceType.gpu)
    replacements: dict[str, Any] = {"default_device": lambda: gpu, "compile": _compile}
    for name, value in replacements.items():
        setattr(mx, name, value)
    fast: dict[str, Any] = {
        "rms_norm": lambda x, weight=None, eps=0.0: _one_operation("RMSNorm", [x, weight], [x])[0],
        "layer_norm": lambda x, weight, bias, eps: _one_operation("LayerNorm", [x, weight, bias], [x])[0],
        "scaled_dot_product_attention": lambda q, k, v, *, scale, mask=None, **_: _one_operation(
            ATTENTION, [q, k, v, mask], [q]
        )[0],
        "rope": lambda x, *_, **options: _one_operation("RoPE", [x, options.get("freqs")], [x])[0],
    }
    for name, value in fast.items():
        setattr(mx.fast, name, value)


def count(function: Callable[..., Any], arrays: Sequence[mx.array]) -> Cost:
    """`function(*arrays)`, which gives an array or a tuple of them."""
    events: list[dict[str, Any]] = []
    mx.export_function(events.append, function, *arrays)
    cost, known = Cost(), {}
    for event in events:
        if event["type"] in ("inputs", "constants"):
            for name, *description in event[event["type"]]:
                known[name] = _constant(description)
        elif event["type"] == "primitive":
            inputs = [known[name] for name, _, _ in event["inputs"]]
            outputs = [_dense(shape, dtype.size) for _, shape, dtype in event["outputs"]]
            made = _primitive(event["name"], event["arguments"], inputs, outputs, cost)
            known.update(zip((name for name, _, _ in event["outputs"]), made, strict=True))
    return cost


def _compile(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    if function is None:
        return _compile

    def call(*arrays: Any) -> Any:
        out = function(*arrays)
        several = isinstance(out, (tuple, list))
        outs = _one_operation("compiled", arrays, list(out) if several else [out])
        return tuple(outs) if several else outs[0]

    return call


def _one_operation(name: str, inputs: Sequence[Any], outputs: Sequence[mx.array]) -> list[mx.array]:
    """Arrays like `outputs` that depend on the inputs through a single primitive. A marker of no size tells which."""
    _fused.append(name)
    marker = mx.zeros((len(_fused), 0))
    shapes = [mx.zeros(out.shape, out.dtype) for out in outputs]
    given = [each for each in inputs if isinstance(each, mx.array)]
    return list(mx.depends(shapes, [marker, *given]))


def _primitive(name: str, arguments: Sequence[Any], inputs: Arrays, outputs: Arrays, cost: Cost) -> Arrays:
    """Adds what one primitive costs; gives its outputs with their strides."""
    if name == "Depends" and len(inputs) > len(outputs) and inputs[len(outputs)].size == 0:
        name, inputs = _fused[inputs[len(outputs)].shape[0] - 1], inputs[len(outputs) + 1 :]
    if name in FREE:
        return outputs if name == "Full" else inputs[: len(outputs)]
    if name in VIEWS:
        return _view(name, arguments, inputs[0], outputs, cost)
    if name in PRODUCTS:
        _copy_unless([inputs[0]], _rows_apart, cost)
        weights = (inputs[1:], _is_dense) if name == "QuantizedMatmul" else (inputs[1:2], _rows_or_columns_apart)
        _copy_unless(*weights, cost)
        cost.launches += 1
        cost.product_flops += 2 * math.prod(outputs[0].shape) * inputs[0].shape[-1]
        return outputs
    if name == ATTENTION:
        return _attention(inputs, cost)
    if name in NORMS:
        if _rows_adjacent(inputs[0]):
            outputs = [_like(inputs[0], outputs[0])]
        else:
            _copy_unless(inputs[:1], _rows_adjacent, cost)
        cost.add(name, _read(inputs) + _read(outputs))
        return outputs
    if name == "Concatenate":
        cost.add(name, 2 * _read(inputs), len(inputs))
        return outputs
    cost.add(name, _read(inputs) + _read(outputs))
    return _pointwise(inputs, outputs)


def _view(name: str, arguments: Sequence[Any], x: np.ndarray, outputs: Arrays, cost: Cost) -> Arrays:
    shape = outputs[0].shape
    if name == "Transpose":
        return [x.transpose(arguments[0])]
    if name == "Broadcast":
        return [np.broadcast_to(x, shape)]
    if name == "Slice":
        strides = [stride * step for stride, step in zip(x.strides, arguments[2], strict=True)]
        return [as_strided(np.zeros(1, x.dtype), shape, strides)]
    if name == "Split":
        return np.split(x, list(arguments[0]), arguments[1])
    if name == "View":
        wider = outputs[0].itemsize > x.itemsize
        if x.itemsize == outputs[0].itemsize:
            return [x]
        if not x.flags.c_contiguous and (wider or x.strides[-1] != x.itemsize):
            cost.add("copy", 2 * _read([x]))
            return outputs
        return [x.view(outputs[0].dtype)]
    try:
        return [np.reshape(x, shape, copy=False)]
    except ValueError:  # the strides allow no view
        cost.add("copy", 2 * _read([x]))
        return outputs


def _attention(inputs: Arrays, cost: Cost) -> Arrays:
    """Rows may lie anywhere, numbers of a row may not; the output lies as [B, L, H, D]."""
    q, k = inputs[:2]
    _copy_unless(inputs[:3], _rows_apart, cost)
    cost.launches += 1
    cost.attention_flops += 4 * math.prod(q.shape) * k.shape[2]
    batch, heads, length, dims = q.shape
    return [_dense((batch, length, heads, dims), q.itemsize).transpose(0, 2, 1, 3)]


def _copy_unless(inputs: Arrays, fits: Callable[[np.ndarray], bool], cost: Cost) -> None:
    for x in inputs:
        if not fits(x):
            cost.add("copy", 2 * _read([x]))


def _pointwise(inputs: Arrays, outputs: Arrays) -> Arrays:
    """One array (and numbers next to it) keeps its layout; several of other layouts are read by strides."""
    arrays = [x for x in inputs if x.size > 1]
    if len(arrays) == 1 and _fills_its_memory(arrays[0]) and arrays[0].shape == outputs[0].shape:
        return [_like(arrays[0], out) for out in outputs]
    return outputs


def _read(arrays: Arrays) -> int:
    """Bytes in memory: what is broadcast counts once."""
    return sum(
        x.itemsize * math.prod(size for size, stride in zip(x.shape, x.strides, strict=True) if stride) for x in arrays
    )


def _rows_apart(x: np.ndarray) -> bool:
    return x.shape[-1] == 1 or x.strides[-1] == x.itemsize


def _rows_or_columns_apart(x: np.ndarray) -> bool:
    return x.itemsize in x.strides[-2:]


def _is_dense(x: np.ndarray) -> bool:
    return bool(x.flags.c_contiguous)


def _rows_adjacent(x: np.ndarray) -> bool:
    if not _fills_its_memory(x) or not _rows_apart(x):
        return False
    return x.ndim == 1 or x.shape[-2] == 1 or x.strides[-2] == x.shape[-1] * x.itemsize


def _fills_its_memory(x: np.ndarray) -> bool:
    """Whether some order of its axes is without gaps."""
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return bool(x.transpose(order).flags.c_contiguous)


def _like(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out` with the layout of x."""
    strides = [stride // x.itemsize * out.itemsize for stride in x.strides]
    return as_strided(np.zeros(1, out.dtype), out.shape, strides)


def _dense(shape: Sequence[int], item: int) -> np.ndarray:
    """An array of this shape that takes no memory: only its strides count."""
    strides = [item * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return as_strided(np.zeros(1, ITEMS[item]), tuple(shape), strides)


def _constant(description: Sequence[Any]) -> np.ndarray:
    """Inputs come as (shape, dtype), constants as arrays."""
    if len(description) == 1:
        return _dense(description[0].shape, description[0].dtype.size)
    shape, dtype = description
    return _dense(shape, dtype.size)
