"""What a linear layer gives, and the pointwise functions that add its bias on their way.

A dense product adds the bias itself (addmm). A packed one cannot, and a sum of its own reads and writes everything once
more: 27 of 81 GB a step of FLUX.1 at 1024x1024.
"""

from typing import NamedTuple

import mlx.core as mx

from ..precision import FLOAT16_DIVISOR
from .activation import gelu_tanh, tanh_form
from .fused import fused, gated_sum, gated_sum_of_two


class Product(NamedTuple):
    out: mx.array
    bias: mx.array | None = None  # still to be added
    divided: bool = False  # out is to be multiplied by FLOAT16_DIVISOR before

    def sum(self) -> mx.array:
        out = self.out.astype(mx.float32) * FLOAT16_DIVISOR if self.divided else self.out
        return out if self.bias is None else out + self.bias


def gelu_tanh_of(y: Product) -> mx.array:
    return gelu_tanh(y.out) if y.bias is None else _biased_gelu_tanh(y.out, y.bias)


def divided_gelu_tanh_of(y: Product) -> mx.array:
    """A part of it, for a product that would not fit float16."""
    return _divided_gelu_tanh(y.out) if y.bias is None else _divided_biased_gelu_tanh(y.out, y.bias)


def gated_sum_of(x: mx.array, gate: mx.array, y: Product) -> mx.array:
    """x + gate * y in x's dtype; gate [D]"""
    if y.divided:
        return _gated_sum_of_divided(x, gate, y.out, mx.zeros_like(gate) if y.bias is None else y.bias)
    return gated_sum(x, gate, y.out) if y.bias is None else gated_sum_of_two(x, gate, y.out, y.bias)


@fused
def _biased_gelu_tanh(x: mx.array, bias: mx.array) -> mx.array:
    return tanh_form(x + bias)


@fused
def _divided_gelu_tanh(x: mx.array) -> mx.array:
    return tanh_form(x) * (1 / FLOAT16_DIVISOR)


@fused
def _divided_biased_gelu_tanh(x: mx.array, bias: mx.array) -> mx.array:
    return tanh_form(x + bias) * (1 / FLOAT16_DIVISOR)


@fused
def _gated_sum_of_divided(x: mx.array, gate: mx.array, y: mx.array, bias: mx.array) -> mx.array:
    """x + gate * (FLOAT16_DIVISOR * y + bias)"""
    return x + gate.astype(x.dtype) * (y.astype(x.dtype) * FLOAT16_DIVISOR + bias.astype(x.dtype))
