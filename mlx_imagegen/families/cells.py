"""What families share whose loop runs on FLUX.2's latents: cells of 2 x 2, normed, a token each.

In: an autoencoder's weights and config, and how reference pictures are prepared. Out: the part of a `Family` that turns
pictures into tokens and tokens into pictures.
Must not know: transformers, prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
from PIL import Image

from ..autoencoders.flux2 import SIDE, Decoder, Encoder, Flux2VaeConfig
from ..image import to_pixels
from ..layers.patches import Grid, patchified, unpatchified
from ..loading.component import Component
from ..loading.weights import Weights
from ..masks import interpolated
from ..precision import VAE_DTYPE
from ..random import TorchGenerator
from .base import Branch, Family, LastValueCache, Prompt, Settings

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class EncodedReferences:
    """Reference pictures as the transformer takes them, one after another."""

    tokens: mx.array | None = None  # [1, R, C]
    grids: tuple[Grid, ...] = ()


class Preparation(Protocol):
    """How large reference pictures are encoded, and what of them."""

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]: ...

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]: ...


class CellFamily(Family[Branch]):
    stages = {
        "encode": ("text_encoder",),
        "references": ("vae_encoder",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, vae: Weights, config: Flux2VaeConfig, preparation: Preparation):
        self._vae_config = config
        self._preparation = preparation
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self.components = {
            "vae_decoder": Component(vae, lambda: Decoder(config), VAE_DTYPE),
            "vae_encoder": Component(vae, lambda: Encoder(config), VAE_DTYPE),
        }

    @property
    def size_multiple(self) -> int:
        return SIDE * self._vae_config.scale_factor

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        rows, columns = self.grid(settings)
        return 1, self._vae_config.cell_channels, rows, columns

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, 1)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(unpatchified(x, self.grid(settings), SIDE))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        clean = unpatchified(self._tokens(picture), self.grid(settings), 1)
        return clean, TorchGenerator(seed).randn(self.shape(settings))

    def latent_mask(self, mask: mx.array, settings: Settings) -> mx.array:
        return interpolated(mask, self.grid(settings))

    def encoded_references(self, prompt: Prompt) -> EncodedReferences:
        return self._references.get(prompt.references_key, lambda: self._encode_references(prompt.references))

    def reference_count(self, prompt: Prompt) -> int:
        """The tokens of a prompt's reference pictures, by their sizes alone."""
        sizes = [picture.size for picture in prompt.references]
        return sum(math.prod(self._grid(size)) for size in self._preparation.sizes(sizes, self.size_multiple))

    def forget(self) -> None:
        self._references.forget()

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        if not pictures:
            return EncodedReferences()
        prepared = self._preparation.prepared(pictures, self.size_multiple)
        tokens = mx.concatenate([self._tokens(mx.array(to_pixels(each) * 2 - 1)) for each in prepared], axis=1)
        mx.eval(tokens)
        return EncodedReferences(tokens, tuple(self._grid(each.size) for each in prepared))

    def _tokens(self, pixels: mx.array) -> mx.array:
        """[H, W, 3] -> [1, L, C] in the loop's scale; the posterior's mode, not a sample."""
        encoder = self.components["vae_encoder"].load()
        mean, _ = encoder.encode(pixels[None])
        return patchified(encoder.bn.normalise(mean), SIDE)

    def _grid(self, size: Size) -> Grid:
        return size[1] // self.size_multiple, size[0] // self.size_multiple
