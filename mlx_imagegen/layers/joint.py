"""Attention and feed-forward of the image transformers: one stream, or text and image that attend together and go
through weights of their own (FLUX.1, Qwen-Image).

In and out: [B, L, D] of each stream. Parameters carry diffusers' names. Must not know: modulation, block order, files.
"""

from collections.abc import Iterable, Iterator
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
from .stacked import HeadNorms, Stacked, stacked


def attention_cuts(dims: int, count: int, together: int = 1) -> dict[str, Cut]:
    """How the layers of attention by `count` heads are shared out over several machines."""
    shared = heads(dims, count)
    return {
        "*.to_[qkv]": rows(shared),
        "*.add_[qkv]_proj": rows(shared),
        "*.to_out.0": columns(shared, together=together),
        "*.to_add_out": columns(shared, together=together),
    }


class QueriesKeys:
    """One stream's queries and keys, of layers that a module has."""

    def __init__(self, to_q: Linear, to_k: Linear, norm_q: RMSNorm, norm_k: RMSNorm, eps: float):
        self._layers, self._norms, self._eps = (to_q, to_k), (norm_q, norm_k), eps
        self._stacked: tuple[Stacked, HeadNorms] | None = None

    def stack(self) -> Iterator[Stacked | HeadNorms]:
        product, count = stacked(*self._layers), self._layers[0].weight.shape[0] // self._norms[0].weight.size
        self._stacked = None if product is None else (product, HeadNorms(*self._norms, count, self._eps))
        yield from self._stacked or ()

    def __call__(self, x: mx.array, rope: Rope) -> tuple[mx.array, mx.array, mx.array]:
        """[B, L, D] -> q and k, normed and turned, and q before rope, [B, H, L, D/H] each."""
        if self._stacked is not None:
            product, norms = self._stacked
            return norms.turned(product(x), rope)
        size = self._norms[0].weight.size
        pairs = zip(self._layers, self._norms, strict=True)
        q, k = (split_heads(layer(x), norm=norm, size=size) for layer, norm in pairs)
        return rotate(q, rope), rotate(k, rope), q


class Projections(nn.Module):
    """One stream's q, k and v."""

    def __init__(self, dims: int, heads: int, eps: float, bias: bool = True):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (Linear(dims, dims, bias) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(dims // heads, eps), RMSNorm(dims // heads, eps)
        self._head_size = dims // heads
        self._heads = QueriesKeys(self.to_q, self.to_k, self.norm_q, self.norm_k, eps)

    def stack(self) -> Iterator[Stacked | HeadNorms]:
        return self._heads.stack()

    def project(self, x: mx.array, rope: Rope) -> tuple[mx.array, mx.array, mx.array]:
        """[B, L, D] -> q, k, v [B, H, L, D/H], q and k normed and turned."""
        q, k, _ = self._heads(x, rope)
        return q, k, split_heads(self.to_v(x), size=self._head_size)


class Attention(Projections):
    """Self-attention over one stream, without an output projection."""

    def __call__(self, x: mx.array, rope: Rope, others: Iterable[ScaledKeyValues] = ()) -> mx.array:
        """`others`: keys and values without places, which the queries attend to by themselves."""
        q, k, placeless = self._heads(x, rope)
        v = split_heads(self.to_v(x), size=self._head_size)
        return add_attention(attend(q, k, v), placeless, others)


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
        self._txt_heads = QueriesKeys(self.add_q_proj, self.add_k_proj, self.norm_added_q, self.norm_added_k, eps)

    def stack(self) -> Iterator[Stacked | HeadNorms]:
        yield from super().stack()
        yield from self._txt_heads.stack()

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
        length, size = txt.shape[1], self._head_size
        img_q, img_k, placeless = self._heads(img, rope[length:])
        txt_q, txt_k, _ = self._txt_heads(txt, rope[:length])
        k = mx.concatenate([txt_k, img_k], axis=2)  # [B, H, T + L, D/H]
        v = mx.concatenate([split_heads(y, size=size) for y in (self.add_v_proj(txt), self.to_v(img))], axis=2)
        pair = prefixed((k, v), prefix)
        # Apart: to attend, queries need not stand in one place.
        img_out, txt_out = (attend(q, *pair, mask=mask) for q in (img_q, txt_q))
        img_out = add_attention(img_out, placeless, others)
        return self.to_out[0].product(img_out), self.to_add_out.product(txt_out), placeless

    def image_alone(self, img: mx.array, rope: Rope) -> tuple[Product, KeyValues]:
        """The image's stream without text, and its keys and values, for `prefix`."""
        q, *pair = self.project(img, rope)
        return self.to_out[0].product(attend(q, *pair)), (pair[0], pair[1])


class GatedProjection:
    """SwiGLU of one input through two layers that a module has."""

    def __init__(self, gate: Linear, up: Linear):
        self._layers = gate, up
        self._stacked: Stacked | None = None

    def stack(self) -> Iterator[Stacked]:
        self._stacked = stacked(*self._layers)
        if self._stacked is not None:
            yield self._stacked

    def __call__(self, x: mx.array) -> mx.array:
        if self._stacked is not None:
            return swiglu(*mx.split(self._stacked(x), 2, axis=-1))
        gate, up = self._layers
        return swiglu(gate(x), up(x))


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
