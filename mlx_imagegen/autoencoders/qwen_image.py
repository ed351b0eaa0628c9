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

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from ..escaping import shown
from ..layers.conv import Conv2d, Pointwise, Projections, ResidualBlock, activated, self_attention
from ..layers.linear import Linear
from ..layers.posterior import posterior
from ..layers.strips import Cut, Strips
from ..loading.config import LAYERS, POSITIVE, Config, Range
from ..precision import VAE_DTYPE

LEAST_LENGTH = 1e-12  # torch's F.normalize divides by at least this
MOST_LEVELS = 8


@dataclass(frozen=True)
class VaeConfig(Config):
    """vae/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})  # acts in training only
    CLASSES: ClassVar[frozenset[str]] = frozenset({"AutoencoderKLQwenImage"})

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: Annotated[int, LAYERS]
    temperal_downsample: tuple[bool, ...]  # as the files spell it
    latents_mean: tuple[float, ...]
    latents_std: tuple[Annotated[float, POSITIVE], ...]
    attn_scales: tuple[float, ...] = ()
    input_channels: Annotated[int, Range(3, 4)] = 3  # colours, and perhaps alpha

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        if config.attn_scales:
            raise ConfigError(
                f"{where}: field 'attn_scales' is {shown(list(config.attn_scales))}, but Qwen-Image's autoencoder "
                "attends "
                "in its middle block only. The file is of another model: take vae/ from a Qwen-Image repository."
            )
        if not 1 <= len(config.dim_mult) <= MOST_LEVELS:
            raise ConfigError(
                f"{where}: field 'dim_mult' has {len(config.dim_mult)} entries, where 1 to {MOST_LEVELS} are needed; "
                "take the file from the model's repository."
            )
        for field, count in (
            ("temperal_downsample", len(config.dim_mult) - 1),
            ("latents_mean", config.z_dim),
            ("latents_std", config.z_dim),
        ):
            if len(getattr(config, field)) != count:
                raise ConfigError(
                    f"{where}: field '{field}' has {len(getattr(config, field))} entries, where 'dim_mult' and 'z_dim' "
                    f"ask for {count}; take the file from the model's repository."
                )
        if any(width % 2 for width in config.widths[1:]):
            raise ConfigError(
                f"{where}: 'base_dim' and 'dim_mult' make levels of an odd number of channels, which the decoder "
                "halves; take the file from the model's repository."
            )
        return config

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the finest."""
        return tuple(self.base_dim * factor for factor in self.dim_mult)

    @property
    def scale_factor(self) -> int:
        """Pixels a latent, along each side."""
        return int(2 ** len(self.temperal_downsample))


class LatentStatistics(Protocol):
    """By which the loop's latents differ from the posterior's scale: a number a channel each."""

    @property
    def latents_mean(self) -> tuple[float, ...]: ...

    @property
    def latents_std(self) -> tuple[float, ...]: ...


def unused_tensors(config: VaeConfig) -> tuple[str, ...]:
    """Prefixes of what the checkpoint holds for videos alone: the convolutions over time of the resamplers."""
    levels = range(len(config.temperal_downsample))
    down = [f"encoder.down_blocks.{_downsampler(config, level)}.time_conv." for level in levels]
    up = [f"decoder.up_blocks.{level}.upsamplers.0.time_conv." for level in levels]
    over_time = (*config.temperal_downsample, *reversed(config.temperal_downsample))
    return tuple(name for name, temporal in zip([*down, *up], over_time, strict=True) if temporal)


class LatentDecoder(nn.Module):
    """From the loop's latents to pixels, through the `decoder` that it is given."""

    def __init__(self, decoder: nn.Module, channels: int, statistics: LatentStatistics):
        super().__init__()
        self.post_quant_conv = Linear(channels, channels)
        self.decoder = decoder
        self._statistics = statistics

    def decode(self, latents: mx.array, strip_rows: int | None = None) -> mx.array:
        """[B, C, h, w] -> [B, H, W, colours]; every activation is cut into strips of `strip_rows` rows (None: by
        memory)."""
        mean, std = _per_channel(self._statistics)
        z = latents.astype(VAE_DTYPE) * std + mean
        x = self.decoder(Strips(Cut(strip_rows), [self.post_quant_conv(z.transpose(0, 2, 3, 1))]))
        return mx.clip(x.joined(), -1, 1)


class LatentEncoder(nn.Module):
    """From pixels to the posterior, through the `encoder` that it is given."""

    def __init__(self, encoder: nn.Module, channels: int, statistics: LatentStatistics):
        super().__init__()
        self.encoder = encoder
        self.quant_conv = Linear(2 * channels, 2 * channels)
        self._statistics = statistics

    def encode(self, pixels: mx.array, strip_rows: int | None = None) -> tuple[mx.array, mx.array]:
        """[B, H, W, colours] -> mean (the posterior's mode, which editing takes) and log-variance, [B, C, h, w]
        each; to the loop's scale by `normalised`."""
        x = self.encoder(Strips(Cut(strip_rows), [pixels.astype(VAE_DTYPE)]))
        return posterior(self.quant_conv(x.joined()))

    def normalised(self, z: mx.array) -> mx.array:
        """The posterior's scale -> the loop's, [B, C, h, w]."""
        mean, std = _per_channel(self._statistics)
        return (z - mean) / std


class Decoder(LatentDecoder):
    def __init__(self, config: VaeConfig):
        super().__init__(DecoderStack(config), config.z_dim, config)


class Encoder(LatentEncoder):
    def __init__(self, config: VaeConfig):
        super().__init__(EncoderStack(config), config.z_dim, config)


class DecoderStack(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = Conv2d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        # An upsampler halves the width, whatever the next level's own is.
        inputs = [widths[0], *(width // 2 for width in widths[:-1])]
        self.up_blocks = [
            UpBlock(before, width, config.num_res_blocks + 1, last=level == len(widths) - 1)
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True))
        ]
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], config.input_channels)

    def __call__(self, x: Strips) -> Strips:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, activated(self.norm_out, x))


class EncoderStack(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = Conv2d(config.input_channels, config.base_dim)
        # One flat list, as the checkpoint counts: each level's blocks, then its downsampler.
        self.down_blocks: list[nn.Module] = []
        for level, (before, width) in enumerate(pairwise((config.base_dim, *widths))):
            self.down_blocks += residual_blocks(before, width, config.num_res_blocks)
            if level < len(widths) - 1:
                self.down_blocks.append(Resample(Conv2d(width, width, downsample=True)))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * config.z_dim)

    def __call__(self, x: Strips) -> Strips:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(x, activated(self.norm_out, x))


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


def _downsampler(config: VaeConfig, level: int) -> int:
    """Where a level's downsampler stands in the encoder's flat list."""
    return config.num_res_blocks * (level + 1) + level


def _per_channel(statistics: LatentStatistics) -> tuple[mx.array, mx.array]:
    """latents_mean and latents_std, [C, 1, 1] each."""
    mean, std = mx.array(statistics.latents_mean, VAE_DTYPE), mx.array(statistics.latents_std, VAE_DTYPE)
    return mean[:, None, None], std[:, None, None]
