"""Attention and feed-forward of the image transformers: one stream, or text and image that attend together and go
through weights of their own (FLUX.1, Qwen-Image).

In and out: [B, L, D] of each stream. Parameters carry diffusers' names. Must not know: modulation, block order, files.
"""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .activation import swiglu
from .attention import KeyValues, ScaledKeyValues, add_attention, attend, prefixed, split_heads
from .linear import Linear
from .norm import RMSNorm
from .products import Product, divided_gelu_tanh_of, gelu_tanh_of
from .rope import Rope, rotate
from .sharing import Cut, channels, columns, heads, rows


def attention_cuts(dims: int, count: int, together: int = 1) -> dict[str, Cut]:
    """How the layers of attention by `count` heads are shared out over several machines."""
    shared = heads(dims, count)
    return {
        "*.to_[qkv]": rows(shared),
        "*.add_[qkv]_proj": rows(shared),
        "*.to_out.0": columns(shared, together=together),
        "*.to_add_out": columns(shared, together=together),
    }


class Projections(nn.Module):
    """One stream's q, k and v."""

    def __init__(self, dims: int, heads: int, eps: float, bias: bool = True):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (Linear(dims, dims, bias) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(dims // heads, eps), RMSNorm(dims // heads, eps)
        self._head_size = dims // heads

    def project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """[B, L, D] -> q, k, v [B, H, L, D/H], q and k normed."""
        norms = self.norm_q, self.norm_k, None
        linears = self.to_q, self.to_k, self.to_v
        pairs, size = zip(linears, norms, strict=True), self._head_size
        q, k, v = (split_heads(linear(x), norm=norm, size=size) for linear, norm in pairs)
        return q, k, v


class Attention(Projections):
    """Self-attention over one stream, without an output projection."""

    def __call__(self, x: mx.array, rope: Rope, others: Iterable[ScaledKeyValues] = ()) -> mx.array:
        """`others`: keys and values without places, which the queries attend to by themselves."""
        q, k, v = self.project(x)
        return add_attention(attend(rotate(q, rope), rotate(k, rope), v), q, others)


class ProjectedAttention(Attention):
    """Self-attention over one stream, with an output projection."""

    def __init__(self, dims: int, heads: int, eps: float, bias: bool = True):
        super().__init__(dims, heads, eps, bias)
        self.to_out = [Linear(dims, dims, bias)]

    def __call__(self, x: mx.array, rope: Rope, others: Iterable[ScaledKeyValues] = ()) -> mx.array:
        return self.to_out[0](super().__call__(x, rope, others))


class JointAttention(Projections):
    """Text and image attend together, text first; each has projections of its own."""

    def __init__(self, dims: int, heads: int, eps: float, bias: bool = True):
        super().__init__(dims, heads, eps, bias)
        self.to_out = [Linear(dims, dims, bias)]
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(dims, dims, bias) for _ in range(3))
        self.norm_added_q, self.norm_added_k = RMSNorm(dims // heads, eps), RMSNorm(dims // heads, eps)
        self.to_add_out = Linear(dims, dims, bias)

    def __call__(
        self, img: mx.array, txt: mx.array, rope: Rope, mask: mx.array | None = None, prefix: KeyValues | None = None
    ) -> tuple[Product, Product]:
        """The image's output and the text's. `prefix`: keys and values of other tokens, which both streams attend to as
        well."""
        return self.with_queries(img, txt, rope, mask, prefix)[:2]

    def with_queries(
        self,
        img: mx.array,
        txt: mx.array,
        rope: Rope,
        mask: mx.array | None = None,
        prefix: KeyValues | None = None,
        others: Iterable[ScaledKeyValues] = (),
    ) -> tuple[Product, Product, mx.array]:
        """The same, and the image's queries before rope, for what has no place: [B, H, L, D/H]. `others`: keys and
        values without places, which the image's queries attend to by themselves, before the output layer."""
        img_q, k, v = self.project(img)
        txt_q = split_heads(self.add_q_proj(txt), norm=self.norm_added_q, size=self._head_size)
        txt_k = split_heads(self.add_k_proj(txt), norm=self.norm_added_k, size=self._head_size)
        txt_v = split_heads(self.add_v_proj(txt), size=self._head_size)
        q = mx.concatenate([txt_q, img_q], axis=2)  # [B, H, T + L, D/H]
        k = mx.concatenate([txt_k, k], axis=2)
        v = mx.concatenate([txt_v, v], axis=2)
        out = attend(rotate(q, rope), *prefixed((rotate(k, rope), v), prefix), mask=mask)
        length = txt.shape[1]
        img_out = add_attention(out[:, length:], img_q, others)
        return self.to_out[0].product(img_out), self.to_add_out.product(out[:, :length]), img_q

    def image_alone(self, img: mx.array, rope: Rope) -> tuple[Product, KeyValues]:
        """The image's stream without text, and its keys and values, for `prefix`."""
        q, k, v = self.project(img)
        pair = rotate(k, rope), v
        return self.to_out[0].product(attend(rotate(q, rope), *pair)), pair


def feed_forward_cuts(dims: int) -> dict[str, Cut]:
    inner = channels(4 * dims)
    return {"*.net.0.proj": rows(inner), "*.net.2": columns(inner)}


class FeedForward(nn.Module):
    def __init__(self, dims: int):
        super().__init__()
        # The checkpoint numbers the layers net.0 (with .proj inside) and net.2; 1 is a dropout.
        self.net: dict[str, Any] = {"0": {"proj": Linear(dims, 4 * dims)}, "2": Linear(4 * dims, dims)}

    def __call__(self, x: mx.array) -> Product:
        inner: Product = self.net["0"]["proj"].product(x)
        outer: Linear = self.net["2"]
        if x.dtype == mx.float16:  # its output is the largest of a block's
            return outer.product_of_divided(divided_gelu_tanh_of(inner))
        return outer.product(gelu_tanh_of(inner))


def gated_feed_forward_cuts(inner: int, together: int = 1) -> dict[str, Cut]:
    return {
        "*.linear_in": rows(channels(inner), channels(inner)),
        "*.linear_out": columns(channels(inner), together=together),
    }


class GatedFeedForward(nn.Module):
    """SwiGLU, with the gate's rows above the others in one linear layer; no biases."""

    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.linear_in, self.linear_out = Linear(dims, 2 * inner, bias=False), Linear(inner, dims, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_out(swiglu(*mx.split(self.linear_in(x), 2, axis=-1)))
