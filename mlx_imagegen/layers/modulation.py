"""adaLN: a norm without weights, then shift and scale; and tables of the linear layers that give them.

What such a layer gives depends on the timestep (and perhaps on the pooled prompt) alone. So it is computed for a whole
schedule before the loop, one layer at a time: its weight is read, used on all rows and dropped.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .linear import Linear

# Fills an empty layer from the checkpoint, by the layer's path.
Fill = Callable[[nn.Module, str], nn.Module]


def table_row(table: mx.array, index: int) -> mx.array:
    """table[index] as a view: an index by a number is a kernel of its own."""
    return table[index : index + 1].squeeze(0)


def modulate(x: mx.array, shift: mx.array | None, scale: mx.array, eps: float) -> mx.array:
    """LayerNorm(x) * scale + shift, [D] each: one row holds for all tokens, so that it can stand where a norm's own
    weights do. `scale` has its 1 (`with_ones`), and its dtype is the result's. Some models have no shift."""
    return mx.fast.layer_norm(x, scale, shift, eps).astype(scale.dtype)


def with_ones(table: mx.array, *scales: int) -> mx.array:
    """[..., chunks, D] with 1 added to the chunks that are scales, for `modulate`: once, not in every block."""
    ones = np.zeros((table.shape[-2], 1), np.float32)
    ones[list(scales)] = 1
    return table + mx.array(ones).astype(table.dtype)


class FoldedLinear(nn.Module):
    """A linear layer's outputs in its place, a column a timestep."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.table = mx.zeros((rows, columns))


def adaln_table(
    fill: Fill, path: str, x: mx.array, chunks: int, dtype: mx.Dtype, dims: int | None = None, bias: bool = True
) -> mx.array:
    """The linear layer at `path` on x [rows, D] -> [rows, chunks, dims], evaluated; the layer's weight is dropped.
    x [P, rows, D] is P products: a prompt's numbers do not depend on how many others are computed with it.
    `dims`: the model's width, where x is narrower."""
    inputs = x.shape[-1]
    layer = fill(Linear(inputs, chunks * (dims or inputs), bias), path)
    out = layer(x) if x.ndim == 2 else mx.stack([layer(rows) for rows in x])
    return _chunked(out, chunks, dtype)


def folded_adaln_table(
    fill: Fill, path: str, dims: int, chunks: int, columns: Sequence[int], count: int, dtype: mx.Dtype
) -> mx.array:
    """The same from a folded checkpoint, whose table at `path` has `count` columns; of those, `columns`."""
    table = fill(FoldedLinear(chunks * dims, count), path).table
    return _chunked(table[:, mx.array(list(columns))].T, chunks, dtype)


def _chunked(out: mx.array, chunks: int, dtype: mx.Dtype) -> mx.array:
    out = out.reshape(*out.shape[:-1], chunks, -1).astype(dtype)
    mx.eval(out)  # now, so that this layer's weight can go before the next is read
    return out
