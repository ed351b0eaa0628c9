"""Norms that accumulate in float32 inside mx.fast; weights are filled by loading/weights.py."""

import mlx.core as mx
import mlx.nn as nn


class RMSNorm(nn.Module):
    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self._eps)


class ZeroCentredRMSNorm(RMSNorm):
    """An RMS norm whose weight is stored less one. In float32: in bf16 the sum would lose the weight's digits."""

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.weight.astype(mx.float32) + 1
        return mx.fast.rms_norm(x.astype(mx.float32), weight, self._eps).astype(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.bias = mx.zeros((dims,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, self.weight, self.bias, self._eps)
