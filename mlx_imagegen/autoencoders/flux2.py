"""FLUX.2's and FLUX.3's autoencoder: FLUX.1's convolutions, and latents that are normed in cells of 2 x 2.

In: latents [B, C, h, w] in the loop's scale, or pixels [B, H, W, 3] in -1..1. Out: pixels, or (mean, logvar) of the
posterior, [B, C, h, w] each, before the norm. A batch norm's running mean and variance stand in the file, one of each
for every channel and place in a cell. The decoder may be thinner than the encoder. Everything is float32.
Must not know: the loop, pictures on disk. Parameters carry diffusers' names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.linear import Linear
from ..layers.posterior import posterior
from ..layers.strips import Cut, Strips
from ..precision import VAE_DTYPE
from . import kl
from .kl import KLConfig

SIDE = 2  # latents along a cell's side
UNUSED = ("bn.num_batches_tracked",)  # a counter of the training


@dataclass(frozen=True, kw_only=True)
class Flux2VaeConfig(KLConfig):
    """vae/config.json"""

    IGNORED: ClassVar[frozenset[str]] = KLConfig.IGNORED | {"batch_norm_momentum"}
    CLASSES: ClassVar[frozenset[str]] = frozenset({"AutoencoderKLFlux2"})
    ONLY: ClassVar[Mapping[str, object]] = {
        **KLConfig.ONLY, "use_quant_conv": True, "use_post_quant_conv": True, "patch_size": (SIDE, SIDE),
    }  # fmt: skip
    REMEDY: ClassVar[str] = "the file is of another model's autoencoder: take vae/ from a FLUX.2 repository"

    batch_norm_eps: float
    patch_size: tuple[int, ...] = (SIDE, SIDE)
    decoder_block_out_channels: tuple[int, ...] | None = None

    @property
    def cell_channels(self) -> int:
        return SIDE**2 * self.latent_channels

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        return self.decoder_block_out_channels or self.block_out_channels


class CellNorm(nn.Module):
    """A batch norm that has stopped learning: fixed numbers for each channel and place in a cell."""

    def __init__(self, config: Flux2VaeConfig):
        super().__init__()
        count = config.cell_channels
        self.running_mean, self.running_var = mx.zeros((count,)), mx.zeros((count,))
        self._eps = config.batch_norm_eps

    def normalise(self, z: mx.array) -> mx.array:
        mean, deviation = self._statistics()
        return ((_cells(z) - mean) / deviation).reshape(z.shape)

    def restore(self, z: mx.array) -> mx.array:
        mean, deviation = self._statistics()
        return (_cells(z) * deviation + mean).reshape(z.shape)

    def _statistics(self) -> tuple[mx.array, mx.array]:
        """[C, 1, 2, 1, 2] each"""
        shape = (-1, 1, SIDE, 1, SIDE)
        return self.running_mean.reshape(shape), mx.sqrt(self.running_var + self._eps).reshape(shape)


class Decoder(nn.Module):
    def __init__(self, config: Flux2VaeConfig):
        super().__init__()
        self.bn = CellNorm(config)
        self.post_quant_conv = Linear(config.latent_channels, config.latent_channels)
        self.decoder = kl.Decoder(config)

    def decode(self, latents: mx.array, strip_rows: int | None = None) -> mx.array:
        """[B, C, h, w] -> [B, H, W, 3]; every activation is cut into strips of `strip_rows` rows (None: by memory)."""
        z = self.bn.restore(latents.astype(VAE_DTYPE)).transpose(0, 2, 3, 1)
        return self.decoder(Strips(Cut(strip_rows), [self.post_quant_conv(z)])).joined()


class Encoder(nn.Module):
    def __init__(self, config: Flux2VaeConfig):
        super().__init__()
        self.bn = CellNorm(config)
        self.encoder = kl.Encoder(config)
        self.quant_conv = Linear(2 * config.latent_channels, 2 * config.latent_channels)

    def encode(self, pixels: mx.array, strip_rows: int | None = None) -> tuple[mx.array, mx.array]:
        """[B, H, W, 3] -> mean and log-variance, [B, C, h, w] each; to the loop's scale by `normalised`."""
        moments = self.encoder(Strips(Cut(strip_rows), [pixels.astype(VAE_DTYPE)])).joined()
        return posterior(self.quant_conv(moments))

    def normalised(self, z: mx.array) -> mx.array:
        return self.bn.normalise(z)


def _cells(z: mx.array) -> mx.array:
    """[B, C, h, w] -> [B, C, h/2, 2, w/2, 2]"""
    batch, channels, height, width = z.shape
    return z.reshape(batch, channels, height // SIDE, SIDE, width // SIDE, SIDE)
