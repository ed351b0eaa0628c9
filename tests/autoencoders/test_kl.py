"""FLUX.1's autoencoder against diffusers' AutoencoderKL, on a stored draw; tests/parity draws fresh ones."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from autoencoder import CHECKS, TOLERANCE, Check, Parts, difference, read_reference

from mlx_imagegen.autoencoders.kl import Autoencoder, Decoder, Encoder, VaeConfig
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.layers import conv
from mlx_imagegen.layers.strips import Strips
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import open_weights
from tests.draw import drawn_data

STORED = drawn_data() / "flux_vae"


def load(folder: Path) -> Parts:
    path = folder / "vae" / "config.json"
    config = VaeConfig.read(read_json(path), path)
    weights = open_weights("vae", open_checkpoint(folder / "vae"), [Autoencoder(config)])
    encoder, decoder = weights.fill(Encoder(config), "encoder"), weights.fill(Decoder(config), "decoder")
    return Parts(config, encoder, decoder, read_reference(folder))


@pytest.mark.parametrize("check", CHECKS)
def test_the_stored_draw(check: Check) -> None:
    check(load(STORED))


def test_statistics_of_a_strip_alone_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored picture tells exact strips from tiles with norms of their own, the error that DESIGN.md warns of."""
    parts = load(STORED)
    z = parts.reference["latents"]
    exact = conv.GroupNorm._statistics
    monkeypatch.setattr(conv.GroupNorm, "_statistics", lambda norm, x: exact(norm, Strips(x.cut, list(x)[:1])))
    assert difference(parts.decoder.decode(z, 10**6), parts.reference["pixels"]) < TOLERANCE  # one strip is the whole
    assert difference(parts.decoder.decode(z, 26), parts.reference["pixels"]) > 0.05


def test_log_variance_is_clamped() -> None:
    parts = load(STORED)
    channels = parts.encoder.conv_out.bias.shape[0] // 2
    for value, limit in ((-100.0, -30.0), (100.0, 20.0)):
        parts.encoder.conv_out.bias = mx.concatenate([mx.zeros(channels), mx.full(channels, value)])
        parts.encoder.conv_out.weight = mx.zeros_like(parts.encoder.conv_out.weight)
        _, logvar = parts.encoder.encode(parts.reference["picture"])
        assert (np.array(logvar) == limit).all()


def stored_config() -> dict[str, Any]:
    return json.loads((STORED / "vae" / "config.json").read_text())


def test_scaling_and_shift_come_from_the_config() -> None:
    parts = load(STORED)
    config = stored_config()
    z = parts.reference["latents"]
    scaled = VaeConfig.read(config | {"scaling_factor": 2 * config["scaling_factor"], "shift_factor": 0}, "x")
    other = Decoder(scaled)
    open_weights("vae", open_checkpoint(STORED / "vae"), [Autoencoder(scaled)]).fill(other, "decoder")
    moved = 2 * (z + config["shift_factor"] * config["scaling_factor"])
    assert difference(other.decode(moved), parts.reference["pixels"]) < TOLERANCE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_fn", "relu"),
        ("use_quant_conv", True),
        ("use_post_quant_conv", True),
        ("latents_mean", [0.0]),
        ("latents_std", [1.0]),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"] * 2),
        ("shift_factor", None),
        ("norm_num_groups", 5),
    ],
)
def test_other_autoencoders_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"vae/config.json.*'{field}'"):
        VaeConfig.read(stored_config() | {field: value}, "vae/config.json")


def test_a_missing_quant_conv_field_is_not_taken_for_false() -> None:
    """diffusers' default is True."""
    config = {name: value for name, value in stored_config().items() if name != "use_quant_conv"}
    with pytest.raises(ConfigError, match="use_quant_conv"):
        VaeConfig.read(config, "vae/config.json")


def test_widths_that_do_not_fit_the_files_are_named() -> None:
    config = VaeConfig.read(stored_config() | {"block_out_channels": [12, 16, 12]}, "x")
    with pytest.raises(MismatchError, match=r"encoder\.|decoder\."):
        open_weights("vae", open_checkpoint(STORED / "vae"), [Autoencoder(config)])
