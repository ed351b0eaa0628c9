"""Rotary positions over several axes, for image tokens (FLUX.1, Qwen-Image, Z-Image).

Neighbouring pairs (x0, x1) of a head's channels turn by position x frequency; each axis owns a run of channels. A pair
is one complex number, so that a turn is one product: nothing is taken apart and put together again.
Tables are made in float64 and kept as pairs of float32 (angles reach thousands of radians).
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..precision import ROPE_DTYPE, on_gpu
from .fused import fused

Rope = mx.array  # [L, D/2], complex64: cos + i sin


def rope_table(
    positions: np.ndarray, axes_dims: Sequence[int], theta: float, angle_dtype: type[np.floating] = np.float64
) -> Rope:
    """positions [L, axes] -> [L, sum(axes_dims) / 2]. `angle_dtype`: what the reference rounds an angle to."""
    angles = [
        np.outer(positions[:, axis], theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims))
        for axis, dims in enumerate(axes_dims)
    ]
    angle = np.concatenate(angles, axis=1).astype(angle_dtype).astype(np.float64)
    return mx.array((np.cos(angle) + 1j * np.sin(angle)).astype(np.complex64))


@fused
def turned(x: mx.array, partner: mx.array, cos: mx.array, sin: mx.array, signs: mx.array) -> mx.array:
    """Each number turned with its partner: the second of a pair for the first (sign -1), and the other way round."""
    return (x.astype(ROPE_DTYPE) * cos + partner.astype(ROPE_DTYPE) * (signs * sin)).astype(x.dtype)


def rotate_fused(x: mx.array, rope: Rope) -> mx.array:
    """`rotate` as one kernel: it reads x through two views and writes once, where x lies transposed as well."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)  # [B, H, L, D/2, 2]
    table = rope.view(ROPE_DTYPE).reshape(*rope.shape, 2)
    signs = mx.array([-1.0, 1.0], ROPE_DTYPE)
    return turned(pairs, pairs[..., ::-1], table[..., :1], table[..., 1:], signs).reshape(x.shape)


@fused
def turned_scaled(
    x: mx.array, weight: mx.array, partner: mx.array, partners: mx.array, cos: mx.array, sin: mx.array, signs: mx.array
) -> mx.array:
    """`turned`, of numbers that are multiplied with their own weight and their partner's first."""
    own, other = x.astype(ROPE_DTYPE) * weight, partner.astype(ROPE_DTYPE) * partners
    return (own * cos + other * (signs * sin)).astype(x.dtype)


def rotate_scaled(x: mx.array, weight: mx.array, rope: Rope) -> mx.array:
    """x [..., L, D] times a weight that has its axes, turned: one kernel on a GPU."""
    x_pairs, weights = (each.reshape(*each.shape[:-1], -1, 2) for each in (x, weight))
    table = rope.view(ROPE_DTYPE).reshape(*rope.shape, 2)
    signs = mx.array([-1.0, 1.0], ROPE_DTYPE)
    pairs = x_pairs, weights, x_pairs[..., ::-1], weights[..., ::-1]
    return turned_scaled(*pairs, table[..., :1], table[..., 1:], signs).reshape(x.shape)


def rotate(x: mx.array, rope: Rope) -> mx.array:
    """x [B, H, L, D], turned in float32, back in x's dtype."""
    if on_gpu():
        return rotate_fused(x, rope)
    pairs = x.astype(ROPE_DTYPE).view(mx.complex64)  # [B, H, L, D/2]
    return (pairs * rope).view(ROPE_DTYPE).astype(x.dtype)
