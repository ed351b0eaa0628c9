"""Qwen-Image-2.1's autoencoder: 64-channel latents, a sixteenth of the picture's side, and four colours (RGB, alpha).

In: latents [B, C, h, w] as the loop leaves them, normalised, or pixels [B, H, W, 4] in -1..1. Out: pixels in -1..1, or
(mean, logvar) of the unnormalised posterior, [B, C, h, w] each. In float32, and in row strips (layers/strips.py).
It is made of the same parts as Qwen-Image's, and like that one a video model of which one picture is asked: `time_conv`
acts between frames alone and is not read. A level's input reaches its output by a second way, without weights: averaged
where the level shrinks the picture (there a frame of zeros stands before the one), repeated where it enlarges it.
Must not know: the loop, pictures on disk. Parameters carry diffusers' names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.conv import Conv2d
from ..layers.strips import Strips
from ..loading.config import Range
from .qwen_image import (
    DecoderStack,
    EncoderStack,
    LatentDecoder,
    LatentEncoder,
    Resample,
    WanConfig,
    residual_blocks,
)

SCALE = 2  # of a level that shrinks or enlarges the picture


@dataclass(frozen=True, kw_only=True)
class VaeConfig(WanConfig):
    # The scale factors follow from the levels.
    IGNORED: ClassVar[frozenset[str]] = WanConfig.IGNORED | {"scale_factor_spatial", "scale_factor_temporal"}
    ONLY: ClassVar[Mapping[str, object]] = {**WanConfig.ONLY, "is_residual": True}
    REMEDY: ClassVar[str] = "if the file is of another model's autoencoder, take vae/ from a Qwen-Image-2.1 repository"

    decoder_base_dim: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    is_residual: bool = True
    patch_size: Annotated[int, Range(1, 1)] | None = None


def unused_tensors(config: VaeConfig) -> tuple[str, ...]:
    """Prefixes of what the checkpoint holds for videos alone: the convolutions over time of the resamplers."""
    over_time = config.temperal_downsample
    down = [f"encoder.down_blocks.{level}.downsampler.time_conv." for level, on in enumerate(over_time) if on]
    up = [f"decoder.up_blocks.{level}.upsampler.time_conv." for level, on in enumerate(reversed(over_time)) if on]
    return (*down, *up)


class Decoder(LatentDecoder):
    def __init__(self, config: VaeConfig):
        widths = config.widths(config.decoder_base_dim or config.base_dim)[::-1]
        frames = [2 if on else 1 for on in reversed(config.temperal_downsample)]
        blocks: list[nn.Module] = [
            UpBlock(inputs, outputs, config.num_res_blocks + 1, *frames[level : level + 1])
            for level, (inputs, outputs) in enumerate(pairwise((widths[0], *widths)))
        ]
        super().__init__(DecoderStack(config.z_dim, widths, blocks, config.out_channels), config)


class Encoder(LatentEncoder):
    def __init__(self, config: VaeConfig):
        widths = (config.base_dim, *config.widths(config.base_dim))
        frames = [2 if on else 1 for on in config.temperal_downsample]
        blocks: list[nn.Module] = [
            DownBlock(inputs, outputs, config.num_res_blocks, *frames[level : level + 1])
            for level, (inputs, outputs) in enumerate(pairwise(widths))
        ]
        super().__init__(EncoderStack(config.in_channels, widths, blocks, config.z_dim), config)


class UpBlock(nn.Module):
    """`frames`: how many the level makes of one, where it enlarges; None in the last, which keeps the size."""

    def __init__(self, inputs: int, outputs: int, count: int, frames: int | None = None):
        super().__init__()
        self.resnets = residual_blocks(inputs, outputs, count)
        if frames:
            self.upsampler = Resample(Conv2d(outputs, outputs, upsample=True))
        self._outputs, self._frames = outputs, frames

    def __call__(self, x: Strips) -> Strips:
        skip = x.held() if self._frames else None
        for block in self.resnets:
            x = block(x)
        if self._frames is None or skip is None:
            return x
        out, upsample = Strips(x.cut), self.upsampler.resample["1"]
        for start, stop in upsample.spans(x):
            first = start // SCALE
            repeated = repeat(skip.rows(first, -(-stop // SCALE)), self._outputs, self._frames)
            offset = start - first * SCALE
            out.append(upsample.rows(x, start, stop) + repeated[:, offset : offset + stop - start])
            upsample.release(x, stop)
            skip.drop_above(stop // SCALE)
        return out


class DownBlock(nn.Module):
    """`frames`: how many the level takes together, where it shrinks; None in the last, which keeps the size."""

    def __init__(self, inputs: int, outputs: int, count: int, frames: int | None = None):
        super().__init__()
        self.resnets = residual_blocks(inputs, outputs, count)
        if frames:
            self.downsampler = Resample(Conv2d(outputs, outputs, downsample=True))
        self._outputs, self._frames, self._scale = outputs, frames or 1, SCALE if frames else 1

    def __call__(self, x: Strips) -> Strips:
        skip, scale = Strips(x.cut), self._scale  # taken now: it is smaller than x
        for start, stop in x.cut.spans(x.height // scale, scale * x.row_bytes):
            skip.append(average(x.rows(scale * start, scale * stop), self._outputs, self._frames, scale))
        for block in self.resnets:
            x = block(x)
        if "downsampler" in self:
            x = self.downsampler(x)
        out = Strips(x.cut)
        for start, stop in x.cut.spans(x.height, x.row_bytes):
            out.append(x.rows(start, stop) + skip.rows(start, stop))
            x.drop_above(stop)
            skip.drop_above(stop)
        return out


def average(x: mx.array, outputs: int, frames: int, scale: int) -> mx.array:
    """[B, H, W, C] -> [B, H/scale, W/scale, outputs]: the mean of groups of neighbours in (channel, frame, row,
    column); of two frames the first is all zeros."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // scale, scale, width // scale, scale, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)[:, :, :, :, None]  # [B, h, w, C, 1, scale, scale]
    x = mx.pad(x, [(0, 0)] * 4 + [(frames - 1, 0), (0, 0), (0, 0)])
    return x.reshape(*x.shape[:3], outputs, -1).mean(axis=-1)


def repeat(x: mx.array, outputs: int, frames: int) -> mx.array:
    """[B, h, w, C] -> [B, 2 h, 2 w, outputs]: channels repeated in a row and dealt out to (channel, frame, row,
    column); of several frames the last one is the picture."""
    batch, height, width, channels = x.shape
    places = mx.arange(outputs * frames * SCALE**2).reshape(outputs, frames, SCALE, SCALE)
    source = places[:, -1] * channels // places.size  # [outputs, 2, 2]
    x = x[..., source]  # [B, h, w, outputs, 2, 2]
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, SCALE * height, SCALE * width, outputs)
