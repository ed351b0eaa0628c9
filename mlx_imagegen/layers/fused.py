"""Pointwise functions as one kernel on the GPU: what is read once and written once need not go through memory between.

On the CPU `mx.compile` would need a C++ compiler on the user's machine, and gains nothing there: functions run as they
are written.
"""

import functools
from collections.abc import Callable

import mlx.core as mx

from ..precision import on_gpu

Pointwise = Callable[..., mx.array]


def fused(function: Pointwise, shapeless: bool = False) -> Pointwise:
    """`shapeless`: one kernel for arrays of any shape, for functions that broadcast nothing."""
    compiled = mx.compile(function, shapeless=shapeless)

    @functools.wraps(function)
    def call(*arrays: mx.array) -> mx.array:
        return compiled(*arrays) if on_gpu() else function(*arrays)

    return call


@fused
def gated_sum(x: mx.array, gate: mx.array, y: mx.array) -> mx.array:
    """x + gate * y in x's dtype; gate [D]"""
    return x + gate.astype(x.dtype) * y.astype(x.dtype)


@fused
def gated_sum_of_two(x: mx.array, gate: mx.array, y: mx.array, z: mx.array) -> mx.array:
    """x + gate * (y + z) in x's dtype; gate [D]; z like y, or a bias [D]"""
    return x + gate.astype(x.dtype) * (y.astype(x.dtype) + z.astype(x.dtype))


@fused
def residual_sum(x: mx.array, y: mx.array) -> mx.array:
    """x + y in x's dtype, where y's is narrower."""
    return x + y.astype(x.dtype)
