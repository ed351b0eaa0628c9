"""Norms that accumulate in float32 inside mx.fast; weights are filled by files/loading.py."""

import mlx.core as mx
import mlx.nn as nn


class RMSNorm(nn.Module):
    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self._eps = eps

    def __call__(self, x: mx.array, scale: mx.array | None = None) -> mx.array:
        """`scale`: modulation, [D]: one row holds for all tokens, so that it joins the norm's own weight."""
        return mx.fast.rms_norm(x, self.weight if scale is None else self.weight * scale, self._eps)


class LayerNorm(nn.Module):
    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.bias = mx.zeros((dims,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, self.weight, self.bias, self._eps)
