"""Tiny decoders of latents, for previews (madebyollin's TAEF1, of FLUX.1's latents, and TAEF2, of FLUX.2's).

In: latents [B, C, h, w] in the loop's scale, none undone; a file of the published decoder. Out: pixels [B, H, W, 3],
about -1..1. Parameters carry diffusers' names; TAEF2's first blocks have a norm over the picture that diffusers lacks.
Must not know: models, where files lie.
"""

import functools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..layers.conv import Conv2d, GroupNorm
from ..layers.linear import Linear
from ..layers.strips import Cut, Strips
from ..loading.checkpoint import open_checkpoint
from ..loading.weights import open_weights
from ..precision import VAE_DTYPE

MOST_CHANNELS = 32  # of the latents that a published decoder reads
WIDTH, POOL_WIDTH, POOL_GROUPS, POOL_EPS = 64, 256, 4, 1e-5
LEVELS, BLOCKS = 3, 3  # levels before the finest, which has one block
RANGE = 3.0  # latents are kept within it, softly
FIRST_POOL = "decoder.layers.2.pool.0.weight"


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


class Block(nn.Module):
    def __init__(self, pooled: bool):
        super().__init__()
        self.conv = {place: Conv2d(WIDTH, WIDTH) for place in ("0", "2", "4")}
        if pooled:
            first, last = Linear(WIDTH, POOL_WIDTH, bias=False), Linear(POOL_WIDTH, WIDTH, bias=False)
            self.pool = {"0": first, "1": GroupNorm(POOL_WIDTH, POOL_GROUPS, POOL_EPS), "3": last}

    def __call__(self, x: Strips) -> Strips:
        x = self._pooled(x) if "pool" in self else x
        y = self.conv["2"](self.conv["0"](x.held()), relu)
        out, last = Strips(x.cut), self.conv["4"]
        for start, stop in last.spans(y):
            out.append(relu(last.rows(y, start, stop, relu) + x.rows(start, stop)))
            x.drop_above(stop)
        return out

    def _pooled(self, x: Strips) -> Strips:
        wide = Strips(x.cut, (self.pool["0"](part) for part in x))
        norm = self.pool["1"](wide)
        pairs = zip(x, wide, strict=True)
        return Strips(x.cut, (part + self.pool["3"](relu(norm(other))) for part, other in pairs))


class TinyDecoder(nn.Module):
    def __init__(self, channels: int, pooled: bool):
        """`pooled`: TAEF2's first level."""
        super().__init__()
        layers: list[nn.Module | None] = [Conv2d(channels, WIDTH), None]  # None: without parameters
        for level in range(LEVELS):
            layers += [Block(pooled and level == 0) for _ in range(BLOCKS)]
            layers += [None, Conv2d(WIDTH, WIDTH, upsample=True, bias=False)]
        layers += [Block(False), Conv2d(WIDTH, 3)]
        self.decoder = {"layers": {str(index): layer for index, layer in enumerate(layers) if layer is not None}}

    def decode(self, latents: mx.array, strip_rows: int | None = None) -> mx.array:
        first, *others = self.decoder["layers"].values()
        z = mx.tanh(latents.astype(VAE_DTYPE) / RANGE) * RANGE
        x = first(Strips(Cut(strip_rows), [z.transpose(0, 2, 3, 1)]))
        x = Strips(x.cut, map(relu, x))
        for layer in others:
            x = layer(x)
        pixels: mx.array = x.joined()
        return 2 * pixels - 1


@functools.cache
def weight_bytes() -> int:
    """Of the larger of the published decoders."""
    named: Any = tree_flatten(TinyDecoder(MOST_CHANNELS, pooled=True).parameters())
    return sum(value.nbytes for _, value in named)


def open_tiny_decoder(path: Path, channels: int) -> TinyDecoder:
    checkpoint = open_checkpoint(path)
    decoder = TinyDecoder(channels, FIRST_POOL in checkpoint)
    return open_weights("tiny autoencoder", checkpoint, [decoder], unused=("encoder.",)).fill(decoder, dtype=VAE_DTYPE)
