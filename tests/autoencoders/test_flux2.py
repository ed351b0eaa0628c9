"""FLUX.2's autoencoder against diffusers' AutoencoderKLFlux2, on a stored draw; tests/parity draws fresh ones."""

import json
from typing import Any

import pytest
from autoencoder import CHECKS, TOLERANCE, Check, Parts, difference, read_reference

from mlx_imagegen.autoencoders.flux2 import Decoder, Encoder, Flux2VaeConfig
from mlx_imagegen.errors import ConfigError
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import open_weights
from tests.draw import drawn_data

STORED = drawn_data() / "flux2_vae"


def load(folder: Any) -> Parts:
    path = folder / "vae" / "config.json"
    config = Flux2VaeConfig.read(read_json(path), path)
    weights = open_weights("vae", open_checkpoint(folder / "vae"), [Encoder(config), Decoder(config)])
    return Parts(config, weights.fill(Encoder(config)), weights.fill(Decoder(config)), read_reference(folder))


def check_normed_mode(parts: Parts) -> None:
    """What editing and starting from a picture begin with."""
    mean, _ = parts.encoder.encode(parts.reference["picture"])
    assert difference(parts.encoder.normalised(mean), parts.reference["clean"]) < TOLERANCE
    assert difference(parts.encoder.bn.restore(parts.reference["clean"]), parts.reference["mean"]) < TOLERANCE


ALL_CHECKS: tuple[Check, ...] = (*CHECKS, check_normed_mode)


@pytest.mark.parametrize("check", ALL_CHECKS)
def test_the_stored_draw(check: Check) -> None:
    check(load(STORED))


def test_the_stored_draw_has_a_thinner_decoder() -> None:
    config = load(STORED).config
    assert config.decoder_widths != config.block_out_channels


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_quant_conv", False),
        ("use_post_quant_conv", False),
        ("patch_size", [1, 1]),
        ("act_fn", "relu"),
        ("norm_num_groups", 5),
    ],
)
def test_other_autoencoders_are_refused_by_field(field: str, value: object) -> None:
    config = json.loads((STORED / "vae" / "config.json").read_text())
    with pytest.raises(ConfigError, match=f"vae/config.json.*'{field}'"):
        Flux2VaeConfig.read(config | {field: value}, "vae/config.json")


def test_flux1_s_autoencoder_is_refused() -> None:
    config = read_json(drawn_data() / "flux_vae" / "vae" / "config.json")
    with pytest.raises(ConfigError, match="AutoencoderKLFlux2 is needed"):
        Flux2VaeConfig.read(config, "vae/config.json")
