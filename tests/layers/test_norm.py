"""Norms against their definitions in float64."""

import mlx.core as mx
import numpy as np

from mlx_imagegen.layers.norm import RMSNorm


def test_a_modulation_joins_the_norms_own_weight() -> None:
    dice = np.random.default_rng(0)
    x, weight, scale = (dice.standard_normal(shape).astype(np.float32) for shape in ((1, 5, 8), (8,), (8,)))
    norm = RMSNorm(8, 1e-2)
    norm.weight = mx.array(weight)
    plain = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-2) * weight
    np.testing.assert_allclose(np.array(norm(mx.array(x))), plain, rtol=1e-5, atol=1e-6)
    norm.weight = norm.weight * mx.array(scale)
    np.testing.assert_allclose(np.array(norm(mx.array(x))), plain * scale, rtol=1e-5, atol=1e-6)
