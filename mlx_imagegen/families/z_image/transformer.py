"""Z-Image's transformer: one stream of picture and prompt, each refined by blocks of its own before they meet.

In: packed latents [B, L, C], the refined prompt [B, T, D], rope tables and one step's `Modulation`. Out: the model's
output for the picture's tokens, minus the velocity. The Omni edition also takes `Clean`: reference pictures, and which
of the prompt's tokens stand by them.
All sequences are filled up to a multiple of 32 with a learned token, which attends and is attended to. What depends on
prompt and references alone is in modules of its own, `PromptRefiner` and `ReferenceRefiner`, and the adaLN linears
stand in `modulation.py`: none is in memory during the loop.
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.joint import GatedProjection, ProjectedAttention, attention_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate, table_row
from ...layers.norm import RMSNorm
from ...layers.parts import Part, by_part
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


class Clean(NamedTuple):
    """What is shown without noise, modulated as at the end of the schedule."""

    tokens: mx.array  # packed latents of pictures, one after another: [B, R, C]
    lengths: tuple[int, ...]  # of each
    text: int  # of the prompt's tokens, the first ones
    modulation: Modulation


def cuts(config: ZImageConfig) -> Cuts:
    """How the layers are shared out over several machines."""
    inner = channels(config.ffn_dim)
    return {
        **attention_cuts(config.dim, config.n_heads),
        "*.feed_forward.w[13]": rows(inner),
        "*.feed_forward.w2": columns(inner),
    }


def filled_length(tokens: int) -> int:
    """At least one multiple: where there is nothing, pad tokens stand alone."""
    return max(MULTIPLE, tokens + -tokens % MULTIPLE)


def filled(x: mx.array, pad_token: mx.array, lengths: Sequence[int]) -> mx.array:
    """[B, L, D] -> each of the sequences that stand in x one after another, filled up; pad_token [1, D]"""
    batch, _, dims = x.shape
    parts, start = [], 0
    for length in lengths:
        pads = mx.broadcast_to(pad_token.astype(x.dtype), (batch, filled_length(length) - length, dims))
        parts += [x[:, start : start + length], pads]
        start += length
    return mx.concatenate(parts, axis=1)


def by_turns(noisy: mx.array, clean: mx.array | None, index: int, lengths: Sequence[int]) -> list[Part]:
    """Of runs of tokens with noise and without, in turn, each with its rows of a block's table."""
    if clean is None:
        return [Part(sum(lengths), table_row(noisy, index))]
    rows = table_row(noisy, index), table_row(clean, index)
    return [Part(length, rows[place % 2]) for place, length in enumerate(lengths)]


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
        clean: Clean | None = None,
    ) -> mx.array:
        """`rope`: of the picture's tokens, filled up, then of each reference's, then of the prompt's."""
        pictures, lengths = (x, (x.shape[1],)) if clean is None else _with_clean(x, clean)
        text, still = (0, None) if clean is None else (clean.text, clean.modulation)
        img = filled(self.all_x_embedder[self._key](pictures), self.x_pad_token, lengths)
        noisy = filled_length(x.shape[1])
        shown = img.shape[1] - noisy
        for index, block in enumerate(self.noise_refiner):
            parts = by_turns(modulation.refiner, still and still.refiner, index, (noisy, shown))
            img = block(img, rope[: img.shape[1]], parts)
        runs = noisy, shown + text, txt.shape[1] - text

        def run(both: mx.array, index: int) -> mx.array:
            return self.layers[index](both, rope, by_turns(modulation.layers, still and still.layers, index, runs))

        own = slice(x.shape[1])
        first = run(mx.concatenate([img, txt], axis=1), 0)

        def others() -> mx.array:
            both = first
            for index in range(1, len(self.layers)):
                both = run(both, index)
            return both[:, own]

        last = modulate(after_first(img[:, own], first[:, own], others), None, modulation.out, LAST_NORM_EPS)
        return self.all_final_layer[self._key]["linear"](last)


def _with_clean(x: mx.array, clean: Clean) -> tuple[mx.array, tuple[int, ...]]:
    return mx.concatenate([x, clean.tokens.astype(x.dtype)], axis=1), (x.shape[1], *clean.lengths)


class Refiner(nn.Module):
    """Features [B, T, C] of pieces one after another -> what the transformer reads of them, each piece filled up."""

    NAMES: ClassVar[tuple[str, str, str]]  # of embedder, pad token and blocks

    def __init__(self, config: ZImageConfig, width: int):
        super().__init__()
        embedder, pad_token, blocks = self.NAMES
        self[embedder] = [RMSNorm(width, config.norm_eps), Linear(width, config.dim)]
        self[pad_token] = mx.zeros((1, config.dim))
        self[blocks] = [Block(config) for _ in range(config.n_refiner_layers)]

    def __call__(self, features: mx.array, rope: Rope, lengths: Sequence[int] | None = None) -> mx.array:
        """`lengths`: of the pieces, if there are several."""
        (norm, linear), pad_token, blocks = (self[name] for name in self.NAMES)
        x = filled(linear(norm(features)), pad_token, lengths or (features.shape[1],))
        for block in blocks:
            x = block(x, rope)
        return x


class PromptRefiner(Refiner):
    """Of text states."""

    NAMES = "cap_embedder", "cap_pad_token", "context_refiner"

    def __init__(self, config: ZImageConfig):
        super().__init__(config, config.cap_feat_dim)


class ReferenceRefiner(Refiner):
    """Of what the vision tower sees of reference pictures; the Omni edition alone has it."""

    NAMES = "siglip_embedder", "siglip_pad_token", "siglip_refiner"

    def __init__(self, config: ZImageConfig):
        assert config.siglip_feat_dim is not None
        super().__init__(config, config.siglip_feat_dim)


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

    def __call__(self, x: mx.array, rope: Rope, mod: Sequence[Part] | None = None) -> mx.array:
        """`mod`: rows [4, D] in the place of the norms' own weights, for each run of tokens."""
        x = x + self._normed(1, self.attention(self._normed(0, x, mod), rope), mod)
        return x + self._normed(3, self.feed_forward(self._normed(2, x, mod)), mod)

    def _normed(self, place: int, x: mx.array, mod: Sequence[Part] | None) -> mx.array:
        if mod is None:
            normed: mx.array = self[NORMS[place]](x)
            return normed
        weights = [part.chunk(place) for part in mod]
        return by_part(lambda index, tokens: mx.fast.rms_norm(tokens, weights[index], self._eps), mod, x)


class FeedForward(nn.Module):
    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.w1, self.w2, self.w3 = Linear(dims, inner, False), Linear(inner, dims, False), Linear(dims, inner, False)
        self._gated = GatedProjection(self.w1, self.w3)

    def stack(self) -> Iterator[Stacked]:
        return self._gated.stack()

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(self._gated(x))
