"""What families share whose loop runs on an autoencoder's latents.

In: components, and how latents become tokens. Out: the part of a `Family` that turns pictures into latents, latents
into tokens, and tokens into pictures.
Must not know: transformers' layers, prompts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from ..image import to_pixels
from ..layers.patches import patchified, unpatchified
from ..layers.posterior import sample
from ..loading.component import Component
from ..loading.weights import Weights
from ..precision import VAE_DTYPE
from ..random import TorchGenerator
from ..sampling import FlowMatchConfig, Schedule, flow_match_schedule
from .base import Branch, EncodedReferences, Family, Settings


def autoencoder(
    weights: Weights,
    config: Any,
    decoder: Callable[[Any], nn.Module],
    encoder: Callable[[Any], nn.Module],
    paths: tuple[str, str] = ("", ""),
) -> dict[str, Component]:
    """Its two halves, each loaded by itself. `paths`: where they stand in the checkpoint's tree."""
    return {
        "vae_decoder": Component(weights, lambda: decoder(config), VAE_DTYPE, paths[0]),
        "vae_encoder": Component(weights, lambda: encoder(config), VAE_DTYPE, paths[1]),
    }


class LatentFamily(Family[Branch]):
    stages = {
        "encode": ("text_encoder",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }
    channels_last: ClassVar[bool] = False  # of a token's values
    files: Any  # configs and weights

    def __init__(self, components: dict[str, Component], channels: int, side: int, scale: int):
        """`channels`: of a latent. `side`: latents along a token's. `scale`: pixels along a latent's."""
        super().__init__(components)
        self._channels, self._side, self._scale = channels, side, scale

    @property
    def size_multiple(self) -> int:
        return self._side * self._scale

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        rows, columns = self.grid(settings)
        return self.frames(settings), self._channels, self._side * rows, self._side * columns

    def scheduler(self, settings: Settings) -> FlowMatchConfig:
        """With the shift that was asked for in place of its own."""
        config: FlowMatchConfig = self.files.scheduler
        if "shift" not in settings.extras:
            return config
        return replace(config, use_dynamic_shifting=False, shift=settings.extras["shift"], shift_terminal=None)

    def schedule(self, settings: Settings) -> Schedule:
        return flow_match_schedule(self.scheduler(settings), settings.steps, math.prod(self.grid(settings)))

    def pack(self, x: mx.array) -> mx.array:
        tokens = patchified(x, self._side, self.channels_last)
        return tokens.reshape(1, -1, tokens.shape[-1])  # frame after frame

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        frames = x.reshape(self.frames(settings), -1, x.shape[-1])
        return unpatchified(frames, self.grid(settings), self._side, self.channels_last)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        pixels: mx.array = self.components["vae_decoder"].load().decode(self.unpack(x, settings))[0]
        return pixels

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        encoder = self.components["vae_encoder"].load()
        mean, logvar = encoder.encode(picture[None])
        latents: mx.array = encoder.normalised(mean if stream is None else sample(mean, logvar, stream))
        return latents

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        """Reference pictures' latents, evaluated."""
        if not pictures:
            return EncodedReferences()
        latents = []
        for picture in pictures:
            latents.append(self.encode_image(mx.array(to_pixels(picture) * 2 - 1)))
            mx.eval(latents[-1])  # now, so that the next picture's activations take the room of this one's
        tokens = mx.concatenate([self.pack(z) for z in latents], axis=1)
        mx.eval(tokens)
        return EncodedReferences(tokens, tuple((z.shape[2] // self._side, z.shape[3] // self._side) for z in latents))
