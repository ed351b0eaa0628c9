"""Heads in and out, and the attention product, shared by every transformer here."""

from collections.abc import Callable, Iterable

import mlx.core as mx

KeyValues = tuple[mx.array, mx.array]  # [B, heads, L, D] each, after norm and rope
ScaledKeyValues = tuple[float, KeyValues]


def split_heads(
    x: mx.array, heads: int = -1, norm: Callable[[mx.array], mx.array] | None = None, *, size: int = -1
) -> mx.array:
    """[B, L, H*D] -> [B, H, L, D]. `norm`: of each head, before they change places: it would copy them after. `size`:
    D, in the place of H, of which a machine has fewer where layers are shared out."""
    batch, length, _ = x.shape
    x = x.reshape(batch, length, heads, size)
    return (norm(x) if norm else x).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """[B, H, L, D] -> [B, L, H*D]"""
    batch, _, length, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)


def attend(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float | None = None, mask: mx.array | str | None = None
) -> mx.array:
    """Scaled dot-product attention on [B, H, L, D]; k and v may have fewer heads. Gives [B, L, H*D]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return merge_heads(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask))


def add_attention(out: mx.array, q: mx.array, others: Iterable[ScaledKeyValues]) -> mx.array:
    """`out` [B, L, H*D] and what q attends to elsewhere, each times its scale."""
    for scale, pair in others:
        out = out + scale * attend(q, *pair)
    return out


def prefixed(pair: KeyValues, prefix: KeyValues | None) -> KeyValues:
    """Keys and values with those of other tokens before them."""
    if prefix is None:
        return pair
    k, v = (mx.concatenate([before, after], axis=2) for before, after in zip(prefix, pair, strict=True))
    return k, v
