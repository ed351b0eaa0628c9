"""Qwen-Image's autoencoder, a video model of which one picture is asked: latents -> pixels, pixels -> the posterior.

In: latents [B, C, h, w] as the loop leaves them, normalised, or pixels [B, H, W, 3] in -1..1, or 4 with alpha. Out:
pixels in -1..1, or (mean, logvar) of the unnormalised posterior, [B, C, h, w] each. In float32, and in row strips
(layers/strips.py).
For one picture every causal 3-D convolution sees zeros in all time slices but its last: it equals the 2-D convolution
with that slice, exactly. So convolutions here are 2-D, loading takes the last slice of a 5-D weight, and the tensors of
`time_conv`, which act only between frames, are not read: 44.6 M parameters instead of 126.9 M.
Must not know: the loop, pictures on disk. Parameters carry diffusers' names; `Encoder` and `Decoder` stand at the root
of the checkpoint, each whole on its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.conv import Conv2d, Pointwise, Projections, ResidualBlock, activated, self_attention
from ..layers.linear import Linear
from ..layers.posterior import posterior
from ..layers.strips import Cut, Strips
from ..loading.config import LAYERS, POSITIVE, Config, Range
from ..precision import VAE_DTYPE

LEAST_LENGTH = 1e-12  # torch's F.normalize divides by at least this
MOST_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class WanConfig(Config):
    """vae/config.json, in what Qwen-Image's autoencoder and 2.1's have in common."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})  # acts in training only
    ONLY: ClassVar[Mapping[str, object]] = {"attn_scales": ()}  # only the middle block attends
    REMEDY: ClassVar[str] = "if the file is of another model's autoencoder, take vae/ from a Qwen-Image repository"

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: Annotated[int, LAYERS]
    temperal_downsample: tuple[bool, ...]  # as the files spell it
    latents_mean: tuple[float, ...]  # by which the loop's latents differ from the posterior's scale, a number a channel
    latents_std: tuple[Annotated[float, POSITIVE], ...]
    attn_scales: tuple[float, ...] = ()

    def misfits(self) -> Iterator[tuple[str, str]]:
        levels = len(self.dim_mult)
        if not 1 <= levels <= MOST_LEVELS:
            yield "dim_mult", f"a list of 1 to {MOST_LEVELS} numbers"
        if len(self.temperal_downsample) != levels - 1:
            yield "temperal_downsample", f"a list of one less than 'dim_mult' has ({levels - 1})"
        for field in ("latents_mean", "latents_std"):
            if len(getattr(self, field)) != self.z_dim:
                yield field, f"a list of 'z_dim' numbers ({self.z_dim})"

    def widths(self, base: int) -> tuple[int, ...]:
        """Channels of each level, from the finest."""
        return tuple(base * factor for factor in self.dim_mult)

    @property
    def scale_factor(self) -> int:
        """Pixels a latent, along each side."""
        return int(2 ** len(self.temperal_downsample))


@dataclass(frozen=True, kw_only=True)
class VaeConfig(WanConfig):
    CLASSES: ClassVar[frozenset[str]] = frozenset({"AutoencoderKLQwenImage"})

    input_channels: Annotated[int, Range(3, 4)] = 3  # colours, and perhaps alpha

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        if any(width % 2 for width in self.widths(self.base_dim)[1:]):
            yield "base_dim", "one that makes even numbers of channels with 'dim_mult': the decoder halves them"


def unused_tensors(config: VaeConfig) -> tuple[str, ...]:
    """Prefixes of what the checkpoint holds for videos alone: the convolutions over time of the resamplers."""
    levels = range(len(config.temperal_downsample))
    places = [config.num_res_blocks * (level + 1) + level for level in levels]  # in the encoder's flat list
    down = [f"encoder.down_blocks.{place}.time_conv." for place in places]
    up = [f"decoder.up_blocks.{level}.upsamplers.0.time_conv." for level in levels]
    over_time = (*config.temperal_downsample, *reversed(config.temperal_downsample))
    return tuple(name for name, temporal in zip([*down, *up], over_time, strict=True) if temporal)


class LatentDecoder(nn.Module):
    """From the loop's latents to pixels, through the `decoder` that it is given."""

    def __init__(self, decoder: nn.Module, config: WanConfig):
        super().__init__()
        self.post_quant_conv = Linear(config.z_dim, config.z_dim)
        self.decoder = decoder
        self._config = config

    def decode(self, latents: mx.array, strip_rows: int | None = None) -> mx.array:
        """[B, C, h, w] -> [B, H, W, colours]; every activation is cut into strips of `strip_rows` rows (None: by
        memory)."""
        mean, std = _per_channel(self._config)
        z = latents.astype(VAE_DTYPE) * std + mean
        x = self.decoder(Strips(Cut(strip_rows), [self.post_quant_conv(z.transpose(0, 2, 3, 1))]))
        return mx.clip(x.joined(), -1, 1)


class LatentEncoder(nn.Module):
    """From pixels to the posterior, through the `encoder` that it is given."""

    def __init__(self, encoder: nn.Module, config: WanConfig):
        super().__init__()
        self.encoder = encoder
        self.quant_conv = Linear(2 * config.z_dim, 2 * config.z_dim)
        self._config = config

    def encode(self, pixels: mx.array, strip_rows: int | None = None) -> tuple[mx.array, mx.array]:
        """[B, H, W, colours] -> mean (the posterior's mode, which editing takes) and log-variance, [B, C, h, w]
        each; to the loop's scale by `normalised`."""
        x = self.encoder(Strips(Cut(strip_rows), [pixels.astype(VAE_DTYPE)]))
        return posterior(self.quant_conv(x.joined()))

    def normalised(self, z: mx.array) -> mx.array:
        """The posterior's scale -> the loop's, [B, C, h, w]."""
        mean, std = _per_channel(self._config)
        return (z - mean) / std


class DecoderStack(nn.Module):
    def __init__(self, latents: int, widths: Sequence[int], up_blocks: list[nn.Module], colours: int):
        """`widths`: channels of each level, from the coarsest."""
        super().__init__()
        self.conv_in = Conv2d(latents, widths[0])
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = up_blocks
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], colours)

    def __call__(self, x: Strips) -> Strips:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, activated(self.norm_out, x))


class EncoderStack(nn.Module):
    def __init__(self, colours: int, widths: Sequence[int], down_blocks: list[nn.Module], latents: int):
        """`widths`: channels of the first layer, then of each level, from the finest."""
        super().__init__()
        self.conv_in = Conv2d(colours, widths[0])
        self.down_blocks = down_blocks
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * latents)

    def __call__(self, x: Strips) -> Strips:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(x, activated(self.norm_out, x))


class Decoder(LatentDecoder):
    def __init__(self, config: VaeConfig):
        widths = config.widths(config.base_dim)[::-1]
        # An upsampler halves the width, whatever the next level's own is.
        inputs = [widths[0], *(width // 2 for width in widths[:-1])]
        blocks: list[nn.Module] = [
            UpBlock(before, width, config.num_res_blocks + 1, last=level == len(widths) - 1)
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True))
        ]
        super().__init__(DecoderStack(config.z_dim, widths, blocks, config.input_channels), config)


class Encoder(LatentEncoder):
    def __init__(self, config: VaeConfig):
        widths = (config.base_dim, *config.widths(config.base_dim))
        # One flat list, as the checkpoint counts: each level's blocks, then its downsampler.
        blocks: list[nn.Module] = []
        for level, (before, width) in enumerate(pairwise(widths)):
            blocks += residual_blocks(before, width, config.num_res_blocks)
            if level < len(config.dim_mult) - 1:
                blocks.append(Resample(Conv2d(width, width, downsample=True)))
        super().__init__(EncoderStack(config.input_channels, widths, blocks, config.z_dim), config)


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, count: int, last: bool):
        super().__init__()
        self.resnets = residual_blocks(inputs, outputs, count)
        if not last:
            self.upsamplers = [Resample(Conv2d(outputs, outputs // 2, upsample=True))]

    def __call__(self, x: Strips) -> Strips:
        for block in self.resnets:
            x = block(x)
        return self.upsamplers[0](x) if "upsamplers" in self else x


class Resample(nn.Module):
    """The part of a resampler that acts within a frame."""

    def __init__(self, conv: Conv2d):
        super().__init__()
        self.resample = {"1": conv}  # 0 doubles or pads the picture, which Conv2d does itself

    def __call__(self, x: Strips) -> Strips:
        return self.resample["1"](x)


class MidBlock(nn.Module):
    def __init__(self, dims: int):
        super().__init__()
        self.resnets = residual_blocks(dims, dims, 2)
        self.attentions = [Attention(dims)]

    def __call__(self, x: Strips) -> Strips:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Attention(nn.Module):
    """Every pixel attends to every other, with one head."""

    def __init__(self, dims: int):
        super().__init__()
        self.norm = ChannelNorm(dims)
        self.to_qkv = Linear(dims, 3 * dims)
        self.proj = Linear(dims, dims)

    def __call__(self, x: Strips) -> Strips:
        norm = self.norm(x)

        def project(rows: mx.array) -> Projections:
            q, k, v = mx.split(self.to_qkv(norm(rows)), 3, axis=-1)
            return q, k, v

        return self_attention(x, project, self.proj)


class ChannelNorm(nn.Module):
    """diffusers' QwenImageRMS_norm: each pixel's channels scaled to length sqrt(C), times gamma: an RMS norm whose eps
    only guards against zero."""

    def __init__(self, dims: int):
        super().__init__()
        self.gamma = mx.zeros((dims,))
        self._eps = LEAST_LENGTH**2 / dims

    def __call__(self, x: Strips) -> Pointwise:
        return lambda rows: mx.fast.rms_norm(rows, self.gamma, self._eps)


def residual_blocks(inputs: int, outputs: int, count: int) -> list[ResidualBlock]:
    """`count` blocks, the first of which changes the width."""
    return [ResidualBlock(ChannelNorm, inputs if index == 0 else outputs, outputs) for index in range(count)]


def _per_channel(config: WanConfig) -> tuple[mx.array, mx.array]:
    """latents_mean and latents_std, [C, 1, 1] each."""
    mean, std = mx.array(config.latents_mean, VAE_DTYPE), mx.array(config.latents_std, VAE_DTYPE)
    return mean[:, None, None], std[:, None, None]
