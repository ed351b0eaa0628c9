"""adaLN: a norm without weights, then shift and scale, then a gated residual."""

import mlx.core as mx


def modulate(x: mx.array, shift: mx.array, scale: mx.array, eps: float = 1e-6) -> mx.array:
    """LayerNorm(x) * (1 + scale) + shift; the affine part of the norm's kernel is used for it, where one row rules all
    tokens."""
    if shift.ndim == 1:
        return mx.fast.layer_norm(x, 1 + scale, shift, eps)
    return mx.fast.layer_norm(x, None, None, eps) * (1 + scale) + shift
