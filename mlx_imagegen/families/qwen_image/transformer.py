"""Qwen-Image's transformer: double-stream blocks, image and text apart, attending together.

In: packed latents [B, L, C] (the picture's, then those of reference pictures), text features [B, T, D], rope tables and
one step's `Modulation`. Out: the velocity of the picture's own tokens.
The adaLN linears, 33% of the parameters, are not part of `QwenImageTransformer`: they stand in `QwenImageModulators`,
whose outputs depend on the timestep alone and are tabulated before the loop (`modulation.py`).
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.joint import FeedForward, JointAttention, attention_cuts, feed_forward_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate, table_row
from ...layers.norm import RMSNorm
from ...layers.parts import Part, gated_sum_of_parts, modulate_parts
from ...layers.products import Product
from ...layers.rope import Rope
from ...layers.sharing import Cuts
from .config import QwenImageConfig

NORM_EPS = 1e-6  # diffusers fixes it in code
# Where shift, scale and gate begin among a block's vectors, and the gate's place among the three.
ATTENTION, MLP, GATE = 0, 3, 2


class Modulation(NamedTuple):
    """One step's adaLN vectors: img and txt [layers, 6, D] (shift, scale, gate for attention, then for the MLP), out
    [2, D] (scale, shift); scales with their 1. `clean`: img's at t = 0, for the tokens of reference pictures, where the
    model wants it so (zero_cond_t); otherwise None, and img is for all."""

    img: mx.array
    txt: mx.array
    out: mx.array
    clean: mx.array | None = None

    def of_text(self, block: int, length: int) -> list[Part]:
        return [Part(length, table_row(self.txt, block))]

    def of_image(self, block: int, lengths: tuple[int, int]) -> list[Part]:
        """`lengths`: the picture's tokens and its references'."""
        if self.clean is None or lengths[1] == 0:
            return [Part(sum(lengths), table_row(self.img, block))]
        return [Part(lengths[0], table_row(self.img, block)), Part(lengths[1], table_row(self.clean, block))]


def cuts(config: QwenImageConfig) -> Cuts:
    """How the layers are shared out over several machines."""
    return attention_cuts(config.inner_dim, config.num_attention_heads) | feed_forward_cuts(config.inner_dim)


class QwenImageBlocks(nn.Module):
    """Embedders and blocks, which control networks have too."""

    def __init__(self, config: QwenImageConfig):
        super().__init__()
        dims = config.inner_dim
        self.txt_norm = RMSNorm(config.joint_attention_dim, NORM_EPS)
        self.img_in = Linear(config.in_channels, dims)
        self.txt_in = Linear(config.joint_attention_dim, dims)
        self.transformer_blocks = [Block(config) for _ in range(config.num_layers)]


class QwenImageTransformer(QwenImageBlocks):
    def __init__(self, config: QwenImageConfig):
        super().__init__(config)
        self.proj_out = Linear(config.inner_dim, config.patch_size**2 * config.out_channels)

    def __call__(
        self,
        x: mx.array,
        txt: mx.array,
        rope: Rope,
        modulation: Modulation,
        references: int = 0,
        mask: mx.array | None = None,
        residuals: Sequence[Sequence[mx.array]] = (),
        after_first: AfterFirstBlock = run_all,
    ) -> mx.array:
        """`references`: how many of x's tokens, the last ones, are reference pictures'. `mask`: [B, 1, 1, T + L], False
        at padding. `residuals`: what control networks add after each block, [B, L, D]."""
        img = self.img_in(x)  # [B, L, D]
        txt = self.txt_in(self.txt_norm(txt))  # [B, T, D]
        lengths = (img.shape[1] - references, references)
        own = slice(lengths[0])

        def run(blocks: Sequence[tuple[int, Block]], img: mx.array, txt: mx.array) -> tuple[mx.array, mx.array]:
            for index, block in blocks:
                img_mod, txt_mod = modulation.of_image(index, lengths), modulation.of_text(index, txt.shape[1])
                img, txt = block(img, txt, rope, img_mod, txt_mod, mask)
                for each in residuals:
                    img = img + each[index]
            return img, txt

        first, *others = enumerate(self.transformer_blocks)
        before, (img, txt) = img, run([first], img, txt)
        last = after_first(before[:, own], img[:, own], lambda: run(others, img, txt)[0][:, own])
        scale, shift = modulation.out
        return self.proj_out(modulate(last, shift, scale, NORM_EPS))


class Block(nn.Module):
    def __init__(self, config: QwenImageConfig):
        super().__init__()
        dims = config.inner_dim
        self.attn = JointAttention(dims, config.num_attention_heads, NORM_EPS)
        self.img_mlp = FeedForward(dims)
        self.txt_mlp = FeedForward(dims)

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        rope: Rope,
        img_mod: Sequence[Part],
        txt_mod: Sequence[Part],
        mask: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        img_attn, txt_attn = self.attn(
            modulate_parts(img, img_mod, ATTENTION, NORM_EPS),
            modulate_parts(txt, txt_mod, ATTENTION, NORM_EPS),
            rope,
            mask,
        )
        return _fed(self.img_mlp, img, img_attn, img_mod), _fed(self.txt_mlp, txt, txt_attn, txt_mod)


def _fed(mlp: FeedForward, x: mx.array, attn: Product, parts: Sequence[Part]) -> mx.array:
    """What attention gave is added, then what the MLP makes of it."""
    x = gated_sum_of_parts(x, parts, ATTENTION + GATE, attn)
    return gated_sum_of_parts(x, parts, MLP + GATE, mlp(modulate_parts(x, parts, MLP, NORM_EPS)))
