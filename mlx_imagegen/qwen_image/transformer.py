"""Qwen-Image's transformer: double-stream blocks, image and text apart, attending together.

In: packed latents [B, L, C] (the picture's, then those of reference pictures), text features [B, T, D], rope tables and
one step's `Modulation`. Out: velocity [B, L, C]; references' rows of it mean nothing.
The adaLN linears, 33% of the parameters, are not part of `QwenImageTransformer`: they stand in `QwenImageModulators`,
whose outputs depend on the timestep alone and are tabulated before the loop (`modulation.py`).
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers.joint import FeedForward, JointAttention
from ..layers.linear import Linear
from ..layers.modulation import modulate
from ..layers.norm import RMSNorm
from ..layers.rope import Rope
from .config import QwenImageConfig

NORM_EPS = 1e-6  # diffusers fixes it in code


class Modulation(NamedTuple):
    """One step's adaLN vectors: img and txt [layers, 6, D], out [2, D] (scale, shift). `clean`: img's at t = 0, for the
    tokens of reference pictures, where the model wants it so (zero_cond_t); otherwise None, and img is for all."""

    img: mx.array
    txt: mx.array
    out: mx.array
    clean: mx.array | None = None


class QwenImageTransformer(nn.Module):
    def __init__(self, config: QwenImageConfig):
        super().__init__()
        dims = config.inner_dim
        self.txt_norm = RMSNorm(config.joint_attention_dim, NORM_EPS)
        self.img_in = Linear(config.in_channels, dims)
        self.txt_in = Linear(config.joint_attention_dim, dims)
        self.transformer_blocks = [Block(config) for _ in range(config.num_layers)]
        self.proj_out = Linear(dims, config.patch_size**2 * config.out_channels)

    def __call__(
        self,
        x: mx.array,
        txt: mx.array,
        rope: Rope,
        modulation: Modulation,
        references: int = 0,
        mask: mx.array | None = None,
    ) -> mx.array:
        """`references`: how many of x's tokens, the last ones, are reference pictures'. `mask`: [B, 1, 1, T + L], False
        at padding."""
        img = self.img_in(x)  # [B, L, D]
        txt = self.txt_in(self.txt_norm(txt))  # [B, T, D]
        for index, block in enumerate(self.transformer_blocks):
            img_mod = modulation.img[index]
            if modulation.clean is not None and references:
                img_mod = spread((img_mod, modulation.clean[index]), (img.shape[1] - references, references))
            img, txt = block(img, txt, rope, img_mod, modulation.txt[index], mask)
        scale, shift = modulation.out
        return self.proj_out(modulate(img, shift, scale, NORM_EPS))


def spread(rows: Sequence[mx.array], lengths: Sequence[int]) -> mx.array:
    """Each of `rows` [6, D] for as many tokens as its length says: [6, L, D]."""
    parts = [
        mx.broadcast_to(row[:, None], (row.shape[0], length, row.shape[1]))
        for row, length in zip(rows, lengths, strict=True)
    ]
    return mx.concatenate(parts, axis=1)


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
        img_mod: mx.array,
        txt_mod: mx.array,
        mask: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """The two modulations are [6, D]; or [6, L, D], each token's own."""
        img_shift, img_scale, img_gate, img_shift2, img_scale2, img_gate2 = img_mod
        txt_shift, txt_scale, txt_gate, txt_shift2, txt_scale2, txt_gate2 = txt_mod
        img_attn, txt_attn = self.attn(
            modulate(img, img_shift, img_scale, NORM_EPS), modulate(txt, txt_shift, txt_scale, NORM_EPS), rope, mask
        )
        img = img + img_gate * img_attn
        img = img + img_gate2 * self.img_mlp(modulate(img, img_shift2, img_scale2, NORM_EPS))
        txt = txt + txt_gate * txt_attn
        txt = txt + txt_gate2 * self.txt_mlp(modulate(txt, txt_shift2, txt_scale2, NORM_EPS))
        return img, txt
