"""Rotary positions over several axes, for image tokens (FLUX.1, Qwen-Image).

Neighbouring pairs (x0, x1) of a head's channels turn by position x frequency; each axis owns a run of channels.
Tables are made in float64 and kept in float32 (angles reach thousands of radians).
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..precision import ROPE_DTYPE

Rope = tuple[mx.array, mx.array]  # cos, sin: [L, D/2]


def rope_tables(positions: np.ndarray, axes_dims: Sequence[int], theta: float) -> Rope:
    """positions [L, axes] -> cos and sin [L, sum(axes_dims) / 2]."""
    angles = [
        np.outer(positions[:, axis], theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims))
        for axis, dims in enumerate(axes_dims)
    ]
    angle = np.concatenate(angles, axis=1)
    return mx.array(np.cos(angle), ROPE_DTYPE), mx.array(np.sin(angle), ROPE_DTYPE)


def rotate(x: mx.array, rope: Rope) -> mx.array:
    """x [B, H, L, D], turned in float32, back in x's dtype."""
    cos, sin = rope
    pairs = x.astype(ROPE_DTYPE).reshape(*x.shape[:-1], -1, 2)  # [B, H, L, D/2, 2]
    first, second = pairs[..., 0], pairs[..., 1]
    turned = mx.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
