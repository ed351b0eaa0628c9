"""FLUX.2's transformer: double-stream blocks (image and text apart, attending together), then single-stream blocks
whose attention and feed-forward share one linear layer in and one out.

In: latents [B, L, C] (the picture's, then those of reference pictures), text features [B, T, F], rope tables and one
step's `Modulation`. Out: the velocity of the picture's own tokens.
All blocks of a kind share their adaLN vectors; the layers that give them stand in `Flux2Modulators` (modulation.py).
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import swiglu
from ...layers.attention import KeyValues, attend, prefixed, split_heads
from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.fused import gated_sum
from ...layers.joint import GatedFeedForward, JointAttention, attention_cuts, gated_feed_forward_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate
from ...layers.norm import RMSNorm
from ...layers.products import Product, gated_sum_of
from ...layers.rope import Rope, rotate
from ...layers.sharing import Cuts, channels, columns, heads, lengths_of, rows
from ...layers.stacked import HeadNorms
from .config import Flux2Config


class Modulation(NamedTuple):
    """One step's adaLN vectors: img and txt [6, D], single [3, D], out [2, D] (scale, shift); scales with their 1."""

    img: mx.array
    txt: mx.array
    single: mx.array
    out: mx.array


def cuts(config: Flux2Config) -> Cuts:
    """How the layers are shared out over several machines."""
    dims, count = config.inner_dim, config.num_attention_heads
    attention, inner = heads(dims, count), channels(config.mlp_dim)
    return {
        **attention_cuts(dims, count),
        **gated_feed_forward_cuts(config.mlp_dim),
        "*.attn.to_qkv_mlp_proj": rows(attention, attention, attention, inner, inner),
        "*.attn.to_out": columns(attention, inner),
    }


class Flux2Transformer(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        dims = config.inner_dim
        self.x_embedder = Linear(config.in_channels, dims, bias=False)
        self.context_embedder = Linear(config.joint_attention_dim, dims, bias=False)
        self.transformer_blocks = [DoubleBlock(config) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [SingleBlock(config) for _ in range(config.num_single_layers)]
        self.proj_out = Linear(dims, config.out_channels or config.in_channels, bias=False)
        self._eps = config.eps

    def __call__(
        self,
        x: mx.array,
        txt: mx.array,
        rope: Rope,
        modulation: Modulation,
        references: int = 0,
        kept: Sequence[KeyValues] = (),
        after_first: AfterFirstBlock = run_all,
    ) -> mx.array:
        """`references`: how many of x's tokens, the last ones, are reference pictures'. `kept`: what `keys_values`
        gave for reference tokens that are not among x's."""
        img = self.x_embedder(x)  # [B, L, D]
        txt = self.context_embedder(txt)  # [B, T, D]
        doubles, singles = self.transformer_blocks, self.single_transformer_blocks
        prefixes: Sequence[KeyValues | None] = kept or [None] * (len(doubles) + len(singles))
        own, length = slice(img.shape[1] - references), txt.shape[1]

        def double(index: int, img: mx.array, txt: mx.array) -> tuple[mx.array, mx.array]:
            out: tuple[mx.array, mx.array] = doubles[index](
                img, txt, rope, modulation.img, modulation.txt, prefixes[index]
            )
            return out

        def others() -> mx.array:
            x_img, x_txt = img, txt
            for index in range(1, len(doubles)):
                x_img, x_txt = double(index, x_img, x_txt)
            x = mx.concatenate([x_txt, x_img], axis=1)  # [B, T + L, D]
            for single, prefix in zip(singles, prefixes[len(doubles) :], strict=True):
                x, _ = single(x, rope, modulation.single, prefix)
            return x[:, length:][:, own]

        before, (img, txt) = img, double(0, img, txt)
        last = after_first(before[:, own], img[:, own], others)
        scale, shift = modulation.out
        return self.proj_out(modulate(last, shift, scale, self._eps))

    def keys_values(self, x: mx.array, rope: Rope, modulation: Modulation) -> list[KeyValues]:
        """Each block's keys and values for reference tokens that attend to one another alone, evaluated."""
        x = self.x_embedder(x)
        pairs = []
        for double in self.transformer_blocks:
            x, pair = double.image_alone(x, rope, modulation.img)
            pairs.append(pair)
        for single in self.single_transformer_blocks:
            x, pair = single(x, rope, modulation.single)
            pairs.append(pair)
        mx.eval(pairs)  # the last block's own output is never asked for, so it is not computed
        return pairs


class DoubleBlock(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        dims = config.inner_dim
        self.attn = JointAttention(dims, config.num_attention_heads, config.eps, bias=False)
        self.ff = GatedFeedForward(dims, config.mlp_dim)
        self.ff_context = GatedFeedForward(dims, config.mlp_dim)
        self._eps = config.eps

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        rope: Rope,
        img_mod: mx.array,
        txt_mod: mx.array,
        kept: KeyValues | None = None,
    ) -> tuple[mx.array, mx.array]:
        img_shift, img_scale, img_gate = img_mod[:3]
        txt_shift, txt_scale, txt_gate = txt_mod[:3]
        img_attn, txt_attn = self.attn(
            modulate(img, img_shift, img_scale, self._eps),
            modulate(txt, txt_shift, txt_scale, self._eps),
            rope,
            prefix=kept,
        )
        img = self._fed(self.ff, gated_sum_of(img, img_gate, img_attn), img_mod)
        txt = self._fed(self.ff_context, gated_sum_of(txt, txt_gate, txt_attn), txt_mod)
        return img, txt

    def image_alone(self, img: mx.array, rope: Rope, mod: mx.array) -> tuple[mx.array, KeyValues]:
        shift, scale, gate = mod[:3]
        attn, pair = self.attn.image_alone(modulate(img, shift, scale, self._eps), rope)
        return self._fed(self.ff, gated_sum_of(img, gate, attn), mod), pair

    def _fed(self, ff: GatedFeedForward, x: mx.array, mod: mx.array) -> mx.array:
        shift, scale, gate = mod[3:]
        return gated_sum(x, gate, ff(modulate(x, shift, scale, self._eps)))


class SingleBlock(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.attn = ParallelAttention(config)
        self._eps = config.eps

    def __call__(
        self, x: mx.array, rope: Rope, mod: mx.array, kept: KeyValues | None = None
    ) -> tuple[mx.array, KeyValues]:
        shift, scale, gate = mod
        out, pair = self.attn(modulate(x, shift, scale, self._eps), rope, kept)
        return gated_sum_of(x, gate, out), pair


class ParallelAttention(nn.Module):
    """Attention and feed-forward of the same input, side by side."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        dims, mlp = config.inner_dim, config.mlp_dim
        self.to_qkv_mlp_proj = Linear(dims, 3 * dims + 2 * mlp, bias=False)
        self.norm_q = RMSNorm(config.attention_head_dim, config.eps)
        self.norm_k = RMSNorm(config.attention_head_dim, config.eps)
        self.to_out = Linear(dims + mlp, dims, bias=False)
        self._head_size, self._lengths = config.attention_head_dim, (dims, dims, dims, mlp, mlp)
        self._stacked: HeadNorms | None = None
        self._eps = config.eps

    def stack(self) -> Iterator[HeadNorms]:
        """The weights are in one place as published."""
        count = lengths_of(self.to_qkv_mlp_proj, self._lengths)[0] // self._head_size
        self._stacked = HeadNorms(self.norm_q, self.norm_k, count, self._eps)
        yield self._stacked

    def __call__(self, x: mx.array, rope: Rope, kept: KeyValues | None = None) -> tuple[Product, KeyValues]:
        queries, keys, *others = lengths_of(self.to_qkv_mlp_proj, self._lengths)
        qk, rest = self.to_qkv_mlp_proj.runs(x, (queries + keys, sum(others)))
        v, gate, up = mx.split(rest, list(itertools.accumulate(others))[:-1], axis=-1)
        q, k = self._heads(qk, rope)
        pair = k, split_heads(v, size=self._head_size)
        return self.to_out.product_of_parts(attend(q, *prefixed(pair, kept)), swiglu(gate, up)), pair

    def _heads(self, qk: mx.array, rope: Rope) -> tuple[mx.array, mx.array]:
        """Normed and turned, [B, H, L, D/H] each."""
        if self._stacked is not None:
            return self._stacked.turned(qk, rope)[:2]
        both = zip(mx.split(qk, 2, axis=-1), (self.norm_q, self.norm_k), strict=True)
        q, k = (rotate(split_heads(each, norm=norm, size=self._head_size), rope) for each, norm in both)
        return q, k
