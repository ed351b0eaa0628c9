"""FLUX.1's autoencoder, Z-Image's as well, and what FLUX.2's shares with it: latents -> pixels, and pixels -> the
posterior of latents.

In: latents [B, C, h, w] as the loop leaves them, scaled, or pixels [B, H, W, 3] in -1..1. Out: pixels, which may go
a little beyond -1..1, or (mean, logvar) of the unscaled posterior, [B, C, h, w] each. The picture is worked through in
row strips (layers/strips.py), exactly, whatever its size. Everything is float32.
Must not know: the loop, pictures on disk. Parameters carry diffusers' names; `Encoder` and `Decoder` are whole on their
own, so that text-to-image loads the decoder alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.conv import Conv2d, GroupNorm, Projections, ResidualBlock, activated, self_attention
from ..layers.linear import Linear
from ..layers.posterior import posterior
from ..layers.strips import Cut, Strips
from ..loading.config import COLOURS, LAYERS, Config
from ..precision import VAE_DTYPE

MOST_LEVELS = 8
NORM_EPS = 1e-6  # diffusers fixes it in code, for every norm of its autoencoders


@dataclass(frozen=True, kw_only=True)
class KLConfig(Config):
    """What vae/config.json says of the convolutions, whichever model's it is."""

    # force_upcast asks for float32, which is all there is here; sample_size only steers diffusers' own tiling.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"force_upcast", "sample_size"})
    ONLY: ClassVar[Mapping[str, object]] = {"act_fn": "silu"}

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    latent_channels: int
    layers_per_block: Annotated[int, LAYERS]
    norm_num_groups: int
    use_quant_conv: bool  # a 1x1 convolution after the encoder
    use_post_quant_conv: bool  # and one before the decoder
    in_channels: Annotated[int, COLOURS] = 3
    out_channels: Annotated[int, COLOURS] = 3
    act_fn: str = "silu"
    mid_block_add_attention: bool = True

    def misfits(self) -> Iterator[tuple[str, str]]:
        levels = len(self.block_out_channels)
        if not 1 <= levels <= MOST_LEVELS:
            yield "block_out_channels", f"a list of 1 to {MOST_LEVELS} numbers"
        for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if getattr(self, field) != (kind,) * levels:
                yield field, f"{kind} for each of {levels} levels"
        if any(channels % self.norm_num_groups for channels in (*self.block_out_channels, *self.decoder_widths)):
            yield "norm_num_groups", "a divisor of every level's channels ('block_out_channels')"

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        return self.block_out_channels

    @property
    def latent_scale(self) -> tuple[float, float]:
        """(factor, offset): the loop's latents are (z - offset) * factor."""
        return 1.0, 0.0

    @property
    def scale_factor(self) -> int:
        """Pixels a latent, along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class VaeConfig(KLConfig):
    """FLUX.1's vae/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"AutoencoderKL"})
    ONLY: ClassVar[Mapping[str, object]] = {
        **KLConfig.ONLY, "use_quant_conv": False, "use_post_quant_conv": False, "latents_mean": None,
        "latents_std": None,
    }  # fmt: skip
    REMEDY: ClassVar[str] = "the file is of another model's autoencoder: take vae/ from a FLUX.1 repository"

    scaling_factor: float
    shift_factor: float
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @property
    def latent_scale(self) -> tuple[float, float]:
        return self.scaling_factor, self.shift_factor


class Autoencoder(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


class Decoder(nn.Module):
    def __init__(self, config: KLConfig):
        super().__init__()
        widths = config.decoder_widths[::-1]
        self.conv_in = Conv2d(config.latent_channels, widths[0])
        self.mid_block = MidBlock(config, widths[0])
        self.up_blocks = [
            UpBlock(config, inputs, outputs, last=level == len(widths) - 1)
            for level, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        ]
        self.conv_norm_out = _norm(config)(widths[-1])
        self.conv_out = Conv2d(widths[-1], config.out_channels)
        self._scaling, self._shift = config.latent_scale

    def decode(self, latents: mx.array, strip_rows: int | None = None) -> mx.array:
        """[B, C, h, w] -> [B, H, W, 3]; every activation is cut into strips of `strip_rows` rows (None: by memory)."""
        z = latents.astype(VAE_DTYPE) / self._scaling + self._shift
        return self(Strips(Cut(strip_rows), [z.transpose(0, 2, 3, 1)])).joined()

    def __call__(self, x: Strips) -> Strips:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, activated(self.conv_norm_out, x))


class Encoder(nn.Module):
    def __init__(self, config: KLConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = Conv2d(config.in_channels, widths[0])
        self.down_blocks = [
            DownBlock(config, inputs, outputs, last=level == len(widths) - 1)
            for level, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        ]
        self.mid_block = MidBlock(config, widths[-1])
        self.conv_norm_out = _norm(config)(widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels)
        self._scaling, self._shift = config.latent_scale

    def encode(self, pixels: mx.array, strip_rows: int | None = None) -> tuple[mx.array, mx.array]:
        """[B, H, W, 3] -> mean and log-variance, [B, C, h, w] each; to the loop's scale by `normalised`."""
        return posterior(self(Strips(Cut(strip_rows), [pixels.astype(VAE_DTYPE)])).joined())

    def normalised(self, z: mx.array) -> mx.array:
        """The posterior's scale -> the loop's."""
        return (z - self._shift) * self._scaling

    def __call__(self, x: Strips) -> Strips:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(x, activated(self.conv_norm_out, x))


class UpBlock(nn.Module):
    def __init__(self, config: KLConfig, inputs: int, outputs: int, last: bool):
        super().__init__()
        self.resnets = _resnets(config, inputs, outputs, config.layers_per_block + 1)
        if not last:
            self.upsamplers = [{"conv": Conv2d(outputs, outputs, upsample=True)}]

    def __call__(self, x: Strips) -> Strips:
        for block in self.resnets:
            x = block(x)
        return self.upsamplers[0]["conv"](x) if "upsamplers" in self else x


class DownBlock(nn.Module):
    def __init__(self, config: KLConfig, inputs: int, outputs: int, last: bool):
        super().__init__()
        self.resnets = _resnets(config, inputs, outputs, config.layers_per_block)
        if not last:
            self.downsamplers = [{"conv": Conv2d(outputs, outputs, downsample=True)}]

    def __call__(self, x: Strips) -> Strips:
        for block in self.resnets:
            x = block(x)
        return self.downsamplers[0]["conv"](x) if "downsamplers" in self else x


class MidBlock(nn.Module):
    def __init__(self, config: KLConfig, dims: int):
        super().__init__()
        self.resnets = _resnets(config, dims, dims, 2)
        self.attentions = [Attention(config, dims)] if config.mid_block_add_attention else []

    def __call__(self, x: Strips) -> Strips:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Attention(nn.Module):
    """Every pixel attends to every other, with one head."""

    def __init__(self, config: KLConfig, dims: int):
        super().__init__()
        self.group_norm = _norm(config)(dims)
        self.to_q, self.to_k, self.to_v = Linear(dims, dims), Linear(dims, dims), Linear(dims, dims)
        self.to_out = [Linear(dims, dims)]

    def __call__(self, x: Strips) -> Strips:
        norm = self.group_norm(x)

        def project(rows: mx.array) -> Projections:
            y = norm(rows)
            return self.to_q(y), self.to_k(y), self.to_v(y)

        return self_attention(x, project, self.to_out[0])


def _norm(config: KLConfig) -> Callable[[int], GroupNorm]:
    return lambda dims: GroupNorm(dims, config.norm_num_groups, NORM_EPS)


def _resnets(config: KLConfig, inputs: int, outputs: int, count: int) -> list[ResidualBlock]:
    """`count` blocks, the first of which changes the width."""
    return [ResidualBlock(_norm(config), inputs if index == 0 else outputs, outputs) for index in range(count)]
