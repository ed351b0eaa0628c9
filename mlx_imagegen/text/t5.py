"""T5's encoder (v1.1: gated GELU): token embeddings -> features.

In: embeddings of the token ids, padding included (their rows are gathered from the file; the table is no part of the
module). Out: features [B, L, D] after the last norm. Must not know: tokenizers, files, masks: FLUX.1 lets padding
attend. Attention adds a learned bias by distance, is not scaled, and all blocks share block 0's bias. Parameters carry
the checkpoint's names.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.activation import gelu_tanh
from ..layers.attention import attend, split_heads
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.sharing import Cuts, channels, columns, heads, rows
from ..loading.config import HEADS, LAYERS, MANY, POSITIVE, Config, Range


@dataclass(frozen=True)
class T5Config(Config):
    """text_encoder_2/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        # Of the decoder, of training, or repeating feed_forward_proj.
        """bos_token_id classifier_dropout decoder_start_token_id dropout_rate eos_token_id initializer_factor
        is_decoder is_encoder_decoder is_gated_act n_positions num_decoder_layers output_past pad_token_id
        scale_decoder_outputs task_specific_params tie_word_embeddings use_cache""".split()
    )
    CLASSES: ClassVar[frozenset[str]] = frozenset({"t5"})
    ONLY: ClassVar[Mapping[str, object]] = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}
    REMEDY: ClassVar[str] = "this port knows T5 v1.1 alone: take text_encoder_2 from the model's repository"

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: Annotated[int, LAYERS]
    num_heads: Annotated[int, HEADS]
    feed_forward_proj: str
    layer_norm_epsilon: Annotated[float, POSITIVE]
    relative_attention_num_buckets: Annotated[int, Range(4, 4096)]
    vocab_size: Annotated[int, MANY]
    dense_act_fn: str = "gelu_new"
    relative_attention_max_distance: int = 128  # T5's own number; files from before transformers 4.17 lack the key

    def misfits(self) -> Iterator[tuple[str, str]]:
        exact = self.relative_attention_num_buckets // 4  # in each direction half, and half of those are exact
        if self.relative_attention_max_distance <= exact:
            yield "relative_attention_max_distance", f"more than a fourth of relative_attention_num_buckets ({exact})"


def cuts(config: T5Config) -> Cuts:
    """How the layers are shared out over several machines."""
    attention = heads(config.num_heads * config.d_kv, config.num_heads)
    return {
        "*.SelfAttention.[qkv]": rows(attention),
        "*.SelfAttention.o": columns(attention),
        "*.relative_attention_bias": columns(heads(config.num_heads, config.num_heads)),
        "*.DenseReluDense.wi_?": rows(channels(config.d_ff)),
        "*.DenseReluDense.wo": columns(channels(config.d_ff)),
    }


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        blocks = [Block(config, first=index == 0) for index in range(config.num_layers)]
        self.encoder: dict[str, Any] = {"block": blocks, "final_layer_norm": norm}
        self._max_distance = config.relative_attention_max_distance

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, D] -> [B, L, D]"""
        bias = self._bias(x.shape[1]).astype(x.dtype)
        for block in self.encoder["block"]:
            x = block(x, bias)
        features: mx.array = self.encoder["final_layer_norm"](x)
        return features

    def _bias(self, length: int) -> mx.array:
        """What attention adds between any two places, [1, H, L, L]."""
        first: Attention = self.encoder["block"][0].layer[0]["SelfAttention"]
        table = first.relative_attention_bias.weight  # [buckets, H]
        buckets = mx.array(distance_buckets(length, len(table), self._max_distance))
        # Made contiguous once, as all blocks' kernels read it.
        return mx.contiguous(table.T[:, buckets][None])


class Block(nn.Module):
    def __init__(self, config: T5Config, first: bool):
        super().__init__()
        norms = [RMSNorm(config.d_model, config.layer_norm_epsilon) for _ in range(2)]
        self.layer: list[dict[str, nn.Module]] = [
            {"SelfAttention": Attention(config, first), "layer_norm": norms[0]},
            {"DenseReluDense": GatedFeedForward(config), "layer_norm": norms[1]},  # there is no ReLU in v1.1
        ]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        attention, feed_forward = self.layer
        x = x + attention["SelfAttention"](attention["layer_norm"](x), bias)
        out: mx.array = x + feed_forward["DenseReluDense"](feed_forward["layer_norm"](x))
        return out


class Attention(nn.Module):
    def __init__(self, config: T5Config, first: bool):
        super().__init__()
        dims, inner = config.d_model, config.num_heads * config.d_kv
        self.q, self.k, self.v = (Linear(dims, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, dims, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self._head_size = config.d_kv

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        q, k, v = (split_heads(linear(x), size=self._head_size) for linear in (self.q, self.k, self.v))
        return self.o(attend(q, k, v, scale=1.0, mask=bias))


class GatedFeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0, self.wi_1 = (Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


@functools.cache
def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every pair (query, key), [L, L].

    Keys before the query have the lower half of the buckets, keys after it the upper half. In each, small distances
    have buckets of their own and larger ones share buckets that widen as their logarithm, up to `max_distance`.
    """
    half = buckets // 2
    exact = half // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    distance = np.abs(offset)
    # Rounded to float32 at each step, as the reference does: a distance of exactly 16 lies on the edge of a bucket.
    ratio = np.float32(np.maximum(distance, 1)) / np.float32(exact)
    share = np.float32(np.log(ratio.astype(np.float64))) / np.float32(math.log(max_distance / exact))
    shared = exact + (share * np.float32(half - exact)).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(shared, half - 1))
    numbers: np.ndarray = (bucket + half * (offset > 0)).astype(np.int32)
    return numbers
