"""One layer of CLIP's and SigLIP's encoders: norm, self-attention, norm, two linear layers.

In and out: [B, L, D]. Parameters carry transformers' names. Must not know: embeddings, depth, what the tokens are.
"""

import mlx.core as mx
import mlx.nn as nn

from .activation import gelu, gelu_tanh, quick_gelu
from .attention import attend, split_heads
from .linear import Linear
from .norm import LayerNorm

# By what transformers' configs call them.
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh}


class EncoderLayer(nn.Module):
    def __init__(self, dims: int, inner: int, heads: int, eps: float, activation: str, mask: str | None = None):
        super().__init__()
        self.self_attn = Attention(dims, heads, mask)
        self.mlp = FeedForward(dims, inner, activation)
        self.layer_norm1 = LayerNorm(dims, eps)
        self.layer_norm2 = LayerNorm(dims, eps)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    def __init__(self, dims: int, heads: int, mask: str | None):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = Linear(dims, dims), Linear(dims, dims), Linear(dims, dims)
        self.out_proj = Linear(dims, dims)
        self._heads = heads
        self._mask = mask

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(linear(x), self._heads) for linear in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, mask=self._mask))


class FeedForward(nn.Module):
    def __init__(self, dims: int, inner: int, activation: str):
        super().__init__()
        self.fc1 = Linear(dims, inner)
        self.fc2 = Linear(inner, dims)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self._activation(self.fc1(x)))
