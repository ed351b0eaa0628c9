"""Z-Image's transformer: one stream of picture and prompt, each refined by blocks of its own before they meet.

In: packed latents [B, L, C], the refined prompt [B, T, D], rope tables and one step's `Modulation`. Out: the model's
output for the picture's tokens, minus the velocity.
Both sequences are filled up to a multiple of 32 with a learned token, which attends and is attended to. What depends on
the prompt alone is a module of its own, `PromptRefiner`, and the adaLN linears stand in `modulation.py`: neither is in
memory during the loop.
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.joint import GatedProjection, ProjectedAttention, attention_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate, table_row
from ...layers.norm import RMSNorm
from ...layers.rope import Rope
from ...layers.sharing import Cuts, channels, columns, rows
from ...layers.stacked import Stacked
from .config import ZImageConfig

# All three are fixed in diffusers' code.
MULTIPLE = 32  # of tokens in a sequence
HEAD_NORM_EPS, LAST_NORM_EPS = 1e-5, 1e-6
# Of a block: before and after attention, before and after the feed-forward.
NORMS = "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"


class Modulation(NamedTuple):
    """One step's adaLN vectors: refiner and layers [blocks, 4, D], scale and gate of attention, then of the
    feed-forward, each multiplied with its norm's weight (scales with their 1, gates after their tanh); out [D], a scale
    with its 1."""

    refiner: mx.array
    layers: mx.array
    out: mx.array


def cuts(config: ZImageConfig) -> Cuts:
    """How the layers are shared out over several machines."""
    inner = channels(config.ffn_dim)
    return {
        **attention_cuts(config.dim, config.n_heads),
        "*.feed_forward.w[13]": rows(inner),
        "*.feed_forward.w2": columns(inner),
    }


def filled_length(tokens: int) -> int:
    return tokens + -tokens % MULTIPLE


def filled(x: mx.array, pad_token: mx.array) -> mx.array:
    """[B, L, D] -> [B, filled_length(L), D]; pad_token [1, D]"""
    batch, length, dims = x.shape
    pads = mx.broadcast_to(pad_token.astype(x.dtype), (batch, filled_length(length) - length, dims))
    return mx.concatenate([x, pads], axis=1)


class ZImageTransformer(nn.Module):
    def __init__(self, config: ZImageConfig):
        super().__init__()
        values = config.in_channels * config.patch_size**2
        self.all_x_embedder = {config.patch_key: Linear(values, config.dim)}
        self.x_pad_token = mx.zeros((1, config.dim))
        self.noise_refiner = [Block(config) for _ in range(config.n_refiner_layers)]
        self.layers = [Block(config) for _ in range(config.n_layers)]
        self.all_final_layer = {config.patch_key: {"linear": Linear(config.dim, values)}}
        self._key = config.patch_key

    def __call__(
        self,
        x: mx.array,
        txt: mx.array,
        rope: Rope,
        modulation: Modulation,
        after_first: AfterFirstBlock = run_all,
    ) -> mx.array:
        """`rope`: of the picture's tokens, filled up, then of the prompt's."""
        img = filled(self.all_x_embedder[self._key](x), self.x_pad_token)
        for index, block in enumerate(self.noise_refiner):
            img = block(img, rope[: img.shape[1]], table_row(modulation.refiner, index))
        own = slice(x.shape[1])
        first = self.layers[0](mx.concatenate([img, txt], axis=1), rope, table_row(modulation.layers, 0))

        def others() -> mx.array:
            both = first
            for index, block in enumerate(self.layers[1:], 1):
                both = block(both, rope, table_row(modulation.layers, index))
            return both[:, own]

        last = modulate(after_first(img[:, own], first[:, own], others), None, modulation.out, LAST_NORM_EPS)
        return self.all_final_layer[self._key]["linear"](last)


class PromptRefiner(nn.Module):
    """Text states [B, T, C] -> what the transformer reads of the prompt, [B, filled_length(T), D]."""

    def __init__(self, config: ZImageConfig):
        super().__init__()
        self.cap_embedder = [RMSNorm(config.cap_feat_dim, config.norm_eps), Linear(config.cap_feat_dim, config.dim)]
        self.cap_pad_token = mx.zeros((1, config.dim))
        self.context_refiner = [Block(config) for _ in range(config.n_refiner_layers)]

    def __call__(self, states: mx.array, rope: Rope) -> mx.array:
        norm, linear = self.cap_embedder
        txt = filled(linear(norm(states)), self.cap_pad_token)
        for block in self.context_refiner:
            txt = block(txt, rope)
        return txt


class Block(nn.Module):
    """Each branch is normed before and after; modulation scales both norms, and the prompt's blocks have none."""

    def __init__(self, config: ZImageConfig):
        super().__init__()
        dims, eps = config.dim, config.norm_eps
        self.attention = ProjectedAttention(dims, config.n_heads, HEAD_NORM_EPS, bias=False)
        self.feed_forward = FeedForward(dims, config.ffn_dim)
        for name in NORMS:
            self[name] = RMSNorm(dims, eps)
        self._eps = eps

    def __call__(self, x: mx.array, rope: Rope, mod: mx.array | None = None) -> mx.array:
        """`mod` [4, D] in the place of the norms' own weights."""
        before, after, ffn_before, ffn_after = [self[name].weight for name in NORMS] if mod is None else mod
        x = x + self._normed(self.attention(self._normed(x, before), rope), after)
        return x + self._normed(self.feed_forward(self._normed(x, ffn_before)), ffn_after)

    def _normed(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self._eps)


class FeedForward(nn.Module):
    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.w1, self.w2, self.w3 = Linear(dims, inner, False), Linear(inner, dims, False), Linear(dims, inner, False)
        self._gated = GatedProjection(self.w1, self.w3)

    def stack(self) -> Iterator[Stacked]:
        return self._gated.stack()

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(self._gated(x))
