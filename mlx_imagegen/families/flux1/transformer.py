"""FLUX.1's transformer: double-stream blocks (image and text apart, attending together), then single-stream blocks.

In: packed latents [B, L, C] (the picture's, then those of reference pictures), text features [B, T, D], rope tables and
one step's `Modulation`. Out: the velocity of the picture's own tokens.
The adaLN linears, 27% of the parameters, are not part of `FluxTransformer`: they stand in `FluxModulators`, whose
outputs depend on (timestep, guidance, pooled prompt) alone and are tabulated before the loop (`modulation.py`).
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.attention import ScaledKeyValues, add_attention
from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.joint import Attention, FeedForward, JointAttention, attention_cuts, feed_forward_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate, table_row
from ...layers.products import gated_sum_of, gelu_tanh_of
from ...layers.rope import Rope
from ...layers.sharing import Cuts, channels, columns, heads, rows
from ...precision import stream_dtype
from .config import FluxConfig
from .prompts import AttendedPicture, seen_in

NORM_EPS = 1e-6  # diffusers fixes it in code: FluxAttention(eps=1e-6) and every adaLN norm


class Modulation(NamedTuple):
    """One step's adaLN vectors: img and txt [layers, 6, D], single [layers, 3, D], out [2, D] (scale, shift); scales
    with their 1."""

    img: mx.array
    txt: mx.array
    single: mx.array
    out: mx.array


class Residuals(NamedTuple):
    """What a control network adds after the blocks, one for each; none for blocks that it leaves alone."""

    double: Sequence[mx.array]  # [B, L, D]
    single: Sequence[mx.array]


def cuts(config: FluxConfig) -> Cuts:
    """How the layers are shared out over several machines."""
    dims, count = config.inner_dim, config.num_attention_heads
    return {
        **attention_cuts(dims, count),
        **feed_forward_cuts(dims),
        "*.proj_mlp": rows(channels(4 * dims)),
        "single_transformer_blocks.*.proj_out": columns(heads(dims, count), channels(4 * dims)),
    }


class FluxBlocks(nn.Module):
    """Embedders and blocks, which control networks have too."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        dims = config.inner_dim
        self.x_embedder = Linear(config.in_channels, dims)
        self.context_embedder = Linear(config.joint_attention_dim, dims)
        self.transformer_blocks = [DoubleBlock(config) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [SingleBlock(config) for _ in range(config.num_single_layers)]


class FluxTransformer(FluxBlocks):
    def __init__(self, config: FluxConfig):
        super().__init__(config)
        self.proj_out = Linear(config.inner_dim, config.out_channels or config.in_channels)

    def __call__(
        self,
        x: mx.array,
        txt: mx.array,
        rope: Rope,
        modulation: Modulation,
        references: int = 0,
        residuals: Sequence[Residuals] = (),
        after_first: AfterFirstBlock = run_all,
        pictures: Sequence[AttendedPicture] = (),
    ) -> mx.array:
        """`references`: how many of x's tokens, the last ones, are reference pictures'. `pictures`: what blocks
        look at besides."""
        stream = stream_dtype(x.dtype)
        img = self.x_embedder(x).astype(stream)  # [B, L, D]
        txt = self.context_embedder(txt).astype(stream)  # [B, T, D]
        own = slice(img.shape[1] - references)

        def double(index: int, img: mx.array, txt: mx.array) -> tuple[mx.array, mx.array]:
            rows = table_row(modulation.img, index), table_row(modulation.txt, index)
            looks = seen_in(pictures, index, inside=True), seen_in(pictures, index, inside=False)
            img, txt = self.transformer_blocks[index](img, txt, rope, *rows, *looks)
            for each in residuals:
                img = img + each.double[index] if each.double else img
            return img, txt

        def others() -> mx.array:
            x_img, x_txt = img, txt
            for index in range(1, len(self.transformer_blocks)):
                x_img, x_txt = double(index, x_img, x_txt)
            length = txt.shape[1]
            x = mx.concatenate([x_txt, x_img], axis=1)  # [B, T + L, D]
            for index, single in enumerate(self.single_transformer_blocks):
                looks = seen_in(pictures, len(self.transformer_blocks) + index, inside=True)
                x = single(x, rope, table_row(modulation.single, index), looks)
                for each in residuals:
                    if each.single:
                        x = mx.concatenate([x[:, :length], x[:, length:] + each.single[index]], axis=1)
            return x[:, length:][:, own]

        before, (img, txt) = img, double(0, img, txt)
        last = after_first(before[:, own], img[:, own], others)
        scale, shift = modulation.out
        return self.proj_out(modulate(last, shift, scale, NORM_EPS))


class DoubleBlock(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        dims = config.inner_dim
        self.attn = JointAttention(dims, config.num_attention_heads, NORM_EPS)
        self.ff = FeedForward(dims)
        self.ff_context = FeedForward(dims)

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        rope: Rope,
        img_mod: mx.array,
        txt_mod: mx.array,
        inside: Sequence[ScaledKeyValues] = (),
        after: Sequence[ScaledKeyValues] = (),
    ) -> tuple[mx.array, mx.array]:
        """`inside`, `after`: of pictures that are looked at besides, before attention's output layer or at the end."""
        img_shift, img_scale, img_gate, img_shift2, img_scale2, img_gate2 = img_mod
        txt_shift, txt_scale, txt_gate, txt_shift2, txt_scale2, txt_gate2 = txt_mod
        img_attn, txt_attn, queries = self.attn.with_queries(
            modulate(img, img_shift, img_scale, NORM_EPS), modulate(txt, txt_shift, txt_scale, NORM_EPS), rope,
            others=inside,
        )  # fmt: skip
        img = gated_sum_of(img, img_gate, img_attn)
        img = gated_sum_of(img, img_gate2, self.ff(modulate(img, img_shift2, img_scale2, NORM_EPS)))
        img = add_attention(img, queries, after)
        txt = gated_sum_of(txt, txt_gate, txt_attn)
        txt = gated_sum_of(txt, txt_gate2, self.ff_context(modulate(txt, txt_shift2, txt_scale2, NORM_EPS)))
        return img, txt


class SingleBlock(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        dims = config.inner_dim
        self.attn = Attention(dims, config.num_attention_heads, NORM_EPS)
        self.proj_mlp = Linear(dims, 4 * dims)
        self.proj_out = Linear(5 * dims, dims)

    def __call__(self, x: mx.array, rope: Rope, mod: mx.array, inside: Sequence[ScaledKeyValues] = ()) -> mx.array:
        shift, scale, gate = mod
        y = modulate(x, shift, scale, NORM_EPS)
        parts = self.attn(y, rope, inside), gelu_tanh_of(self.proj_mlp.product(y))  # [B, L, D], [B, L, 4 D]
        return gated_sum_of(x, gate, self.proj_out.product_of_parts(*parts))
