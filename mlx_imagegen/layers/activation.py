"""Activations, written with one exponential (half the time of tanh or sigmoid on the CPU backend) in float32.

On the GPU each is one fused kernel (fused.py), so that the float32 in between costs nothing.
"""

import functools
import math

import mlx.core as mx

from .fused import fused

_fused = functools.partial(fused, shapeless=True)


def tanh_form(x: mx.array) -> mx.array:
    """GELU's: x * sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    y = x.astype(mx.float32)
    slope = -2 * math.sqrt(2 / math.pi)
    return (y / (1 + mx.exp(y * (slope + slope * 0.044715 * (y * y))))).astype(x.dtype)


gelu_tanh = _fused(tanh_form)


@_fused
def silu(x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    return (y / (1 + mx.exp(-y))).astype(x.dtype)


@_fused
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x"""
    y = gate.astype(mx.float32)
    return (y / (1 + mx.exp(-y))).astype(gate.dtype) * x


@_fused
def quick_gelu(x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    return (y / (1 + mx.exp(-1.702 * y))).astype(x.dtype)


@_fused
def gelu(x: mx.array) -> mx.array:
    """The exact form."""
    y = x.astype(mx.float32)
    return (y * (1 + mx.erf(y / math.sqrt(2))) / 2).astype(x.dtype)
