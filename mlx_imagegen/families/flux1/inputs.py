"""What FLUX.1's tools are shown in further channels of every token: a control picture's latents (Depth, Canny), or
those of a picture with a hole and the hole's mask (Fill).

In: widths of the files; latents and masks. Out: which of them a model is, and [1, L, C] to set next to the latents.
Must not know: prompts, seeds, the autoencoder.
"""

from enum import Enum
from pathlib import Path

import mlx.core as mx

from ...errors import ConfigError
from ...layers.patches import patchified

SIDE = 2  # latents a token, down and across; fixed in diffusers' code


class InputKind(Enum):
    """What a transformer's input channels hold after the latents."""

    NONE = "nothing"
    CONTROL = "a control picture"
    FILL = "a picture with a hole"


def input_kind(in_channels: int, latent_channels: int, scale: int, where: str | Path) -> InputKind:
    """`scale`: the autoencoder's, pixels a latent."""
    latents = SIDE**2 * latent_channels
    widths = {
        latents: InputKind.NONE,
        2 * latents: InputKind.CONTROL,
        2 * latents + SIDE**2 * scale**2: InputKind.FILL,
    }
    if in_channels not in widths:
        known = ", ".join(f"{width} ({kind.value})" for width, kind in widths.items())
        raise ConfigError(
            f"{where}: 'in_channels' is {in_channels}; with this autoencoder FLUX.1's models have {known}. The parts of"
            " this folder are of different models, or this is another architecture."
        )
    return widths[in_channels]


def hole_condition(latents: mx.array, mask: mx.array, scale: int) -> mx.array:
    """Latents [1, C, h, w] of the picture with a hole, mask [H, W] with 1 in it -> [1, L, C * 4 + scale² * 4]."""
    height, width = mask.shape
    pixels = mask.reshape(height // scale, scale, width // scale, scale).transpose(1, 3, 0, 2)
    folded = pixels.reshape(1, scale**2, height // scale, width // scale)  # a latent's pixels, row by row, as channels
    return mx.concatenate([patchified(latents, SIDE), patchified(folded, SIDE)], axis=-1)
