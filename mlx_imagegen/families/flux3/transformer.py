"""FLUX.3's transformer: each kind of token (text, picture, references) goes through blocks of its own, in which it
attends to its kind alone; then all go through joint blocks.

In: features of one kind, or the three kinds' states; rope tables; one step's `Modulation`. Out: states, or the velocity
of the picture's tokens. All blocks of a kind share their adaLN vectors; the layers that give them stand in
`Flux3Modulators` (modulation.py).
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.joint import GatedFeedForward, ProjectedAttention, attention_cuts, gated_feed_forward_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate
from ...layers.parts import Part, gated_sum_of_parts, modulate_parts
from ...layers.products import Product
from ...layers.rope import Rope
from ...layers.sharing import Cuts, share_of
from .config import Flux3Config

IMAGE, REFERENCES, TEXT = "image", "image_cond", "txt"  # as the checkpoint calls the kinds of tokens
SHIFT, GATE = 0, 2  # among a block's vectors; the scale follows the shift
KINDS = (TEXT, IMAGE, REFERENCES)  # in the joint sequence's order


class Modulation(NamedTuple):
    """One step's adaLN vectors: by kind [3, D] (shift, scale, gate) for its own blocks and for the joint ones; out
    [2, D] (scale, shift); scales with their 1."""

    own: dict[str, mx.array]
    joint: dict[str, mx.array]
    out: mx.array


def cuts(config: Flux3Config) -> Cuts:
    """How the layers are shared out over several machines."""
    attention = attention_cuts(config.inner_dim, config.num_attention_heads, together=2)
    return attention | gated_feed_forward_cuts(config.mlp_dim, together=2)


class Flux3Transformer(nn.Module):
    def __init__(self, config: Flux3Config):
        super().__init__()
        dims = config.inner_dim

        def blocks(count: int) -> list[Block]:
            return [Block(config) for _ in range(count)]

        self.x_embedders = {
            IMAGE: Linear(config.in_channels, dims, bias=False),
            REFERENCES: Linear(config.cond_in_channels, dims, bias=False),
        }
        self.context_embedder = Linear(config.joint_attention_dim, dims, bias=False)
        self.mode_blocks = {IMAGE: blocks(config.num_layers), REFERENCES: blocks(config.num_layers)}
        self.txt_mode_blocks = blocks(config.num_layers)
        self.single_transformer_blocks = blocks(config.num_single_layers)
        self.proj_out = Linear(dims, config.in_channels, bias=False)
        self._eps = config.eps

    def states(self, kind: str, x: mx.array, rope: Rope, modulation: Modulation) -> mx.array:
        """One kind's features [B, N, F] through its own blocks: [B, N, D]."""
        embedder = self.context_embedder if kind == TEXT else self.x_embedders[kind]
        x = embedder(x)
        for block in self.txt_mode_blocks if kind == TEXT else self.mode_blocks[kind]:
            x = block(x, rope, [Part(x.shape[1], modulation.own[kind])])
        return x

    def __call__(
        self, states: Sequence[mx.array], rope: Rope, modulation: Modulation, after_first: AfterFirstBlock = run_all
    ) -> mx.array:
        """The kinds' states in the order of KINDS, references or not; the rope tables of all, one after another.
        `after_first`: of the joint blocks, where the picture meets the prompt."""
        parts = [Part(x.shape[1], modulation.joint[kind]) for kind, x in zip(KINDS, states, strict=False)]
        own = slice(parts[0].tokens, parts[0].tokens + parts[1].tokens)
        first, *others = self.single_transformer_blocks
        x = first(mx.concatenate(list(states), axis=1), rope, parts)

        def run_others() -> mx.array:
            out = x
            for block in others:
                out = block(out, rope, parts)
            return out[:, own]

        last = after_first(states[1], x[:, own], run_others)
        scale, shift = modulation.out
        return self.proj_out(modulate(last, shift, scale, self._eps))


class Block(nn.Module):
    """Attention and feed-forward of the same input, side by side."""

    def __init__(self, config: Flux3Config):
        super().__init__()
        self.attn = ProjectedAttention(config.inner_dim, config.num_attention_heads, config.eps, bias=False)
        self.ff = GatedFeedForward(config.inner_dim, config.mlp_dim)
        self._eps = config.eps

    def __call__(self, x: mx.array, rope: Rope, parts: Sequence[Part]) -> mx.array:
        y = modulate_parts(x, parts, SHIFT, self._eps)
        attn, ff = self.attn(y, rope), self.ff(y)
        if share := share_of(self.ff.linear_out):
            return gated_sum_of_parts(x, parts, GATE, Product(share.sum(attn + ff)))
        return gated_sum_of_parts(x, parts, GATE, Product(attn), ff)
