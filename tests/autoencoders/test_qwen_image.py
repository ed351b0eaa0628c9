"""Qwen-Image's autoencoder, 2-D here, against diffusers' 3-D AutoencoderKLQwenImage, on a stored draw; tests/parity
draws fresh ones."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from autoencoder import CHECKS as COMMON
from autoencoder import TOLERANCE, Check, Parts, difference, read_reference

from mlx_imagegen.autoencoders.qwen_image import ChannelNorm, Decoder, Encoder, VaeConfig, unused_tensors
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.layers.strips import Cut, Strips
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import open_weights
from tests.draw import drawn_data

STORED = drawn_data() / "qwen_vae"


def load(folder: Path) -> Parts:
    path = folder / "vae" / "config.json"
    config = VaeConfig.read(read_json(path), path)
    trees = [Encoder(config), Decoder(config)]
    weights = open_weights("vae", open_checkpoint(folder / "vae"), trees, unused=unused_tensors(config))
    encoder, decoder = weights.fill(Encoder(config)), weights.fill(Decoder(config))
    return Parts(config, encoder, decoder, read_reference(folder))


def check_normalised(parts: Parts) -> None:
    mean, _ = parts.encoder.encode(parts.reference["picture"])
    assert difference(parts.encoder.normalised(mean), parts.reference["normalised"]) < TOLERANCE


def check_draw(parts: Parts) -> None:
    within = float((mx.abs(parts.reference["pixels"]) < 1).mean())
    assert within > 0.5, "the draw is mostly clamped, and shows little"


CHECKS = (*COMMON, check_normalised, check_draw)


@pytest.mark.parametrize("check", CHECKS)
def test_the_stored_draw(check: Check) -> None:
    check(load(STORED))


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
    checkpoint = open_checkpoint(STORED / "vae")
    with pytest.raises(MismatchError, match="time_conv") as error:
        open_weights("vae", checkpoint, [Encoder(parts.config), Decoder(parts.config)])
    unused = [name for name in checkpoint if name.startswith(unused_tensors(parts.config))]
    assert f"{len(unused)} unexpected" in str(error.value)
    assert all(".time_conv." in name for name in unused)


def test_a_norm_of_nothing_is_nothing() -> None:
    norm = ChannelNorm(4)
    norm.gamma = mx.ones(4)
    rows = mx.array([[0.0, 0, 0, 0], [1e-6, 0, 0, 0], [3, 4, 0, 0]])[None, None]
    normed = norm(Strips(Cut(), [rows]))(rows)
    np.testing.assert_allclose(np.array(normed)[0, 0], [[0, 0, 0, 0], [2, 0, 0, 0], [1.2, 1.6, 0, 0]], rtol=1e-6)


def stored_config() -> dict[str, Any]:
    return json.loads((STORED / "vae" / "config.json").read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_scales", [0.5]),
        ("temperal_downsample", [True]),
        ("latents_mean", [0.0]),
        ("latents_std", [1.0] * 17),
        ("base_dim", 3),  # the decoder halves a level's channels
        ("z_dim", None),
        ("is_residual", True),  # a field of the later Wan autoencoders
    ],
)
def test_other_autoencoders_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"vae/config.json.*'{field}'"):
        VaeConfig.read(stored_config() | {field: value}, "vae/config.json")
