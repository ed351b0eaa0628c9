"""What any family's autoencoder is held to, on a draw that diffusers has encoded and decoded (tests/references)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_imagegen.loading.checkpoint import open_checkpoint

TOLERANCE = 1e-5


class Parts(NamedTuple):
    config: Any
    encoder: Any
    decoder: Any
    reference: dict[str, mx.array]


Check = Callable[[Parts], None]


def read_reference(folder: Path) -> dict[str, mx.array]:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder / "reference.safetensors").items()}


def difference(ours: mx.array, expected: mx.array) -> float:
    """The largest one, relative to the largest value."""
    assert ours.shape == expected.shape
    return float(mx.abs(ours - expected).max() / mx.abs(expected).max())


def levels(pixels: mx.array) -> np.ndarray:
    return np.round(np.clip(np.array(pixels) / 2 + 0.5, 0, 1) * 255).astype(np.int16)


def check_decode(parts: Parts) -> None:
    assert difference(parts.decoder.decode(parts.reference["latents"]), parts.reference["pixels"]) < TOLERANCE


def check_encode(parts: Parts) -> None:
    mean, logvar = parts.encoder.encode(parts.reference["picture"])
    assert difference(mean, parts.reference["mean"]) < TOLERANCE
    assert difference(logvar, parts.reference["logvar"]) < TOLERANCE


def check_strips(parts: Parts) -> None:
    """Two, three and seven strips of the picture, the last of them short, and strips of one row."""
    z, picture = parts.reference["latents"], parts.reference["picture"]
    whole, (mean, logvar) = parts.decoder.decode(z, 10**6), parts.encoder.encode(picture, 10**6)
    height = picture.shape[1]
    for rows in (height // 2 + 1, height // 3 + 1, height // 7 + 1, 1):
        pixels = parts.decoder.decode(z, rows)
        assert difference(pixels, whole) < TOLERANCE
        assert np.abs(levels(pixels) - levels(whole)).max() <= 1
        ours = parts.encoder.encode(picture, rows)
        assert difference(ours[0], mean) < TOLERANCE and difference(ours[1], logvar) < TOLERANCE


def check_scale_factor(parts: Parts) -> None:
    pixels, latents = parts.reference["pixels"].shape[1], parts.reference["latents"].shape[2]
    assert parts.config.scale_factor == pixels // latents


CHECKS: tuple[Check, ...] = (check_decode, check_encode, check_strips, check_scale_factor)
