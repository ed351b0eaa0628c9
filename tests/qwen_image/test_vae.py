"""Qwen-Image's autoencoder, 2-D here, against diffusers' 3-D AutoencoderKLQwenImage, on a stored draw; tests/parity
draws fresh ones."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.checkpoint import open_checkpoint
from mlx_imagegen.config import read_json
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.layers.strips import Cut, Strips
from mlx_imagegen.loading import Weights
from mlx_imagegen.qwen_image.vae import ChannelNorm, Decoder, Encoder, VaeConfig, normalised, unused_tensors

STORED = Path(__file__).parent.parent / "data" / "qwen_vae"
TOLERANCE = 1e-5


class Parts(NamedTuple):
    config: VaeConfig
    encoder: Encoder
    decoder: Decoder
    reference: dict[str, mx.array]


def load(folder: Path) -> Parts:
    path = folder / "vae" / "config.json"
    config = VaeConfig.read(read_json(path), path)
    weights = Weights.open("vae", open_checkpoint(folder / "vae"))
    weights.check([Encoder(config), Decoder(config)], unused=unused_tensors(config))
    reference = open_checkpoint(folder / "reference.safetensors")
    tensors = {name: tensor.read() for name, tensor in reference.items()}
    return Parts(config, weights.fill(Encoder(config)), weights.fill(Decoder(config)), tensors)


def difference(ours: mx.array, expected: mx.array) -> float:
    """The largest one, relative to the largest value."""
    assert ours.shape == expected.shape
    return float(mx.abs(ours - expected).max() / mx.abs(expected).max())


def levels(pixels: mx.array) -> np.ndarray:
    return np.round((np.array(pixels) / 2 + 0.5) * 255).astype(np.int16)


def check_decode(folder: Path) -> None:
    parts = load(folder)
    pixels = parts.reference["pixels"]
    assert float((mx.abs(pixels) < 1).mean()) > 0.5, "the draw is mostly clamped, and shows little"
    assert difference(parts.decoder.decode(parts.reference["latents"]), pixels) < TOLERANCE


def check_encode(folder: Path) -> None:
    parts = load(folder)
    mean, logvar = parts.encoder.encode(parts.reference["picture"])
    assert difference(mean, parts.reference["mean"]) < TOLERANCE
    assert difference(logvar, parts.reference["logvar"]) < TOLERANCE
    assert difference(normalised(mean, parts.config), parts.reference["normalised"]) < TOLERANCE


def check_strips(folder: Path) -> None:
    """Two, three and seven strips of the picture, the last of them short, and strips of one row."""
    parts = load(folder)
    z, picture = parts.reference["latents"], parts.reference["picture"]
    whole, (mean, logvar) = parts.decoder.decode(z, 10**6), parts.encoder.encode(picture, 10**6)
    height = picture.shape[1]
    for rows in (height // 2 + 1, height // 3 + 1, height // 7 + 1, 1):
        pixels = parts.decoder.decode(z, rows)
        assert difference(pixels, whole) < TOLERANCE
        assert np.abs(levels(pixels) - levels(whole)).max() <= 1
        ours = parts.encoder.encode(picture, rows)
        assert difference(ours[0], mean) < TOLERANCE and difference(ours[1], logvar) < TOLERANCE


def test_decode() -> None:
    check_decode(STORED)


def test_encode() -> None:
    check_encode(STORED)


def test_strips_change_nothing() -> None:
    check_strips(STORED)


def test_pixels_are_clamped_as_in_diffusers() -> None:
    parts = load(STORED)
    parts.decoder.decoder.conv_out.bias = mx.full(3, 50.0)
    assert float(parts.decoder.decode(parts.reference["latents"]).min()) == 1.0


def test_weights_are_five_dimensional_on_disk_and_two_dimensional_here() -> None:
    """126.9 M parameters against 44.6 M at full size."""
    stored = open_checkpoint(STORED / "vae")["decoder.conv_in.weight"].read()  # [out, in, t, kh, kw]
    ours = load(STORED).decoder.decoder.conv_in.weight  # [out, kh, kw, in]
    assert stored.ndim == 5 and mx.array_equal(stored[:, :, -1].transpose(0, 2, 3, 1), ours)


def test_only_the_convolutions_over_time_go_unread() -> None:
    parts = load(STORED)
    weights = Weights.open("vae", open_checkpoint(STORED / "vae"))
    with pytest.raises(MismatchError, match="time_conv") as error:
        weights.check([Encoder(parts.config), Decoder(parts.config)])
    unused = [name for name in weights.slices if name.startswith(unused_tensors(parts.config))]
    assert f"{len(unused)} unexpected" in str(error.value)
    assert all(".time_conv." in name for name in unused)


def test_a_norm_of_nothing_is_nothing() -> None:
    norm = ChannelNorm(4)
    norm.gamma = mx.ones(4)
    rows = mx.array([[0.0, 0, 0, 0], [1e-6, 0, 0, 0], [3, 4, 0, 0]])[None, None]
    normed = norm(Strips(Cut(), [rows]))(rows)
    np.testing.assert_allclose(np.array(normed)[0, 0], [[0, 0, 0, 0], [2, 0, 0, 0], [1.2, 1.6, 0, 0]], rtol=1e-6)


def test_scale_factor_counts_the_levels() -> None:
    parts = load(STORED)
    pixels, latents = parts.reference["pixels"].shape[1], parts.reference["latents"].shape[2]
    assert parts.config.scale_factor == pixels // latents


def stored_config() -> dict[str, Any]:
    return json.loads((STORED / "vae" / "config.json").read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_scales", [0.5]),
        ("temperal_downsample", [True]),
        ("latents_mean", [0.0]),
        ("latents_std", [1.0] * 17),
        ("z_dim", None),
        ("is_residual", True),  # a field of the later Wan autoencoders
    ],
)
def test_other_autoencoders_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"vae/config.json.*'{field}'"):
        VaeConfig.read(stored_config() | {field: value}, "vae/config.json")
