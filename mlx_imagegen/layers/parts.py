"""Modulation of a sequence of several kinds of tokens, each with vectors of its own.

In: tokens [B, L, D], and the `Part`s that follow each other in it. Vectors for every single token would be simpler, and
take 0.3 GB in each block when a 1024x1024 picture is edited. The CPU splits the tokens and puts them together again; on
a GPU a kernel chooses each token's vectors, so that nothing is copied.
Must not know: what the parts are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..precision import on_gpu
from .fused import fused, gated_sum_of_two
from .linear import split_runs
from .modulation import modulate, table_row
from .products import Product, gated_sum_of

Marks = tuple[mx.array, ...]  # for each part but the last: whether a token stands before its end, [L, 1]


class Part(NamedTuple):
    """A run of tokens and their adaLN vectors in one block."""

    tokens: int
    rows: mx.array  # [chunks, D]

    def chunk(self, index: int) -> mx.array:
        return table_row(self.rows, index)


def modulate_parts(x: mx.array, parts: Sequence[Part], first: int, eps: float) -> mx.array:
    """`modulate` with each part's shift and scale, its chunks `first` and the next."""
    shifts, scales = ([part.chunk(index) for part in parts] for index in (first, first + 1))
    if len(parts) > 1 and on_gpu():
        return _modulated(mx.fast.layer_norm(x, None, None, eps), *_marks(parts), *shifts, *scales)
    return by_part(lambda index, tokens: modulate(tokens, shifts[index], scales[index], eps), parts, x)


def gated_sum_of_parts(
    x: mx.array, parts: Sequence[Part], chunk: int, y: Product, z: mx.array | None = None
) -> mx.array:
    """x + gate * (y + z), with each part's gate, its `chunk`; z like y, which has no bias then."""
    gates = [part.chunk(chunk) for part in parts]
    if len(parts) > 1 and on_gpu():
        more = y.bias if z is None else z
        chosen = *_marks(parts), *gates
        return _gated(x, y.out, *chosen) if more is None else _gated_of_two(x, y.out, more, *chosen)
    if z is not None:
        return by_part(lambda index, *xs: gated_sum_of_two(xs[0], gates[index], *xs[1:]), parts, x, y.out, z)
    return by_part(lambda index, *xs: gated_sum_of(xs[0], gates[index], y._replace(out=xs[1])), parts, x, y.out)


def by_part(function: Callable[..., mx.array], parts: Sequence[Part], *xs: mx.array) -> mx.array:
    """`function(index, *tokens)` of each part, with its tokens of every x."""
    if len(parts) == 1:
        return function(0, *xs)
    lengths = [part.tokens for part in parts]
    pieces = zip(*(split_runs(x, lengths, axis=1) for x in xs), strict=True)
    return mx.concatenate([function(index, *tokens) for index, tokens in enumerate(pieces)], axis=1)


def _marks(parts: Sequence[Part]) -> Marks:
    return _marks_of(tuple(part.tokens for part in parts))


@functools.lru_cache(maxsize=16)
def _marks_of(lengths: tuple[int, ...]) -> Marks:
    """From NumPy, so that they are evaluated: threads share them."""
    places = np.arange(sum(lengths))[:, None]
    return tuple(mx.array(places < stop) for stop in np.cumsum(lengths)[:-1])


def _chosen(marks: Sequence[mx.array], vectors: Sequence[mx.array]) -> mx.array:
    out = vectors[-1]
    for mark, vector in zip(reversed(marks), reversed(vectors[:-1]), strict=True):
        out = mx.where(mark, vector, out)
    return out


@fused
def _modulated(x: mx.array, *chosen: mx.array) -> mx.array:
    """`chosen`: marks, then a shift for each part, then a scale for each; in float32, rounded once."""
    count = (len(chosen) + 1) // 3
    marks, shifts, scales = chosen[: count - 1], chosen[count - 1 : -count], chosen[-count:]
    shift, scale = _chosen(marks, shifts), _chosen(marks, scales)
    return (x.astype(mx.float32) * scale + shift).astype(scale.dtype)


@fused
def _gated(x: mx.array, y: mx.array, *chosen: mx.array) -> mx.array:
    """`chosen`: marks, then a gate for each part."""
    return x + _gate(chosen).astype(x.dtype) * y.astype(x.dtype)


@fused
def _gated_of_two(x: mx.array, y: mx.array, z: mx.array, *chosen: mx.array) -> mx.array:
    return x + _gate(chosen).astype(x.dtype) * (y.astype(x.dtype) + z.astype(x.dtype))


def _gate(chosen: Sequence[mx.array]) -> mx.array:
    marks = len(chosen) // 2
    return _chosen(chosen[:marks], chosen[marks:])
