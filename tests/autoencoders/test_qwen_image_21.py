"""Qwen-Image-2.1's autoencoder against diffusers' AutoencoderKLQwenImage21, on a stored draw; tests/parity draws fresh
ones."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from autoencoder import CHECKS as COMMON
from autoencoder import TOLERANCE, Check, Parts, difference, read_reference

from mlx_imagegen.autoencoders.qwen_image_21 import Decoder, Encoder, VaeConfig, average, repeat, unused_tensors
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import open_weights
from tests.draw import drawn_data

STORED = drawn_data() / "qwen_image_21/model"


def load(folder: Path) -> Parts:
    path = folder / "vae" / "config.json"
    config = VaeConfig.read(read_json(path), path)
    checkpoint = open_checkpoint(folder / "vae")
    weights = open_weights("vae", checkpoint, [Encoder(config), Decoder(config)], unused=unused_tensors(config))
    encoder, decoder = weights.fill(Encoder(config)), weights.fill(Decoder(config))
    return Parts(config, encoder, decoder, read_reference(folder / "autoencoder"))


def check_normalised(parts: Parts) -> None:
    mean, _ = parts.encoder.encode(parts.reference["picture"])
    assert difference(parts.encoder.normalised(mean), parts.reference["normalised"]) < TOLERANCE


def check_draw(parts: Parts) -> None:
    within = float((mx.abs(parts.reference["pixels"]) < 1).mean())
    assert within > 0.4, "the draw is mostly clamped, and shows little"
    assert parts.reference["pixels"].shape[-1] == 4


CHECKS = (*COMMON, check_normalised, check_draw)


@pytest.mark.parametrize("check", CHECKS)
def test_the_stored_draw(check: Check) -> None:
    check(load(STORED))


def test_only_the_convolutions_over_time_go_unread() -> None:
    config = load(STORED).config
    checkpoint = open_checkpoint(STORED / "vae")
    with pytest.raises(MismatchError, match="time_conv") as error:
        open_weights("vae", checkpoint, [Encoder(config), Decoder(config)])
    unused = [name for name in checkpoint if name.startswith(unused_tensors(config))]
    assert f"{len(unused)} unexpected" in str(error.value)
    assert unused and all(".time_conv." in name for name in unused)


def test_a_frame_of_zeros_halves_what_a_level_over_time_averages() -> None:
    """Two channels of two frames into one: eight numbers of sixteen are the zeros of the frame before."""
    x = mx.arange(8.0).reshape(1, 2, 2, 2)
    assert average(x, 1, 1, 2).item() == 3.5
    assert average(x, 1, 2, 2).item() == 1.75
    assert average(x, 4, 2, 2).flatten().tolist() == [0, 3, 0, 4]  # channel by channel, the frames apart
    assert mx.array_equal(average(x, 2, 1, 1), x)


def test_channels_are_dealt_out_over_frames_rows_and_columns() -> None:
    x = mx.array([10.0, 20.0]).reshape(1, 1, 1, 2)
    assert repeat(x, 2, 2)[0].tolist() == [[[10, 20], [10, 20]], [[10, 20], [10, 20]]]
    assert repeat(x, 1, 2)[0, :, :, 0].tolist() == [[20, 20], [20, 20]]  # the first channel is the frame before
    assert repeat(x, 1, 1)[0, :, :, 0].tolist() == [[10, 10], [20, 20]]  # a channel a row


def test_two_activations_of_the_picture_s_size_are_the_most_that_is_held() -> None:
    """A level's input is kept for its second way only where there is one: at full size there is none."""
    side, base = 256, 8
    config = VaeConfig(
        base_dim=base, z_dim=4, dim_mult=(1, 2, 4, 4), num_res_blocks=2, temperal_downsample=(False, True, True),
        latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4,
    )  # fmt: skip
    decoder, encoder = Decoder(config), Encoder(config)
    activation = side * side * base * 4
    latents, picture = mx.zeros((1, 4, side // 8, side // 8)), mx.zeros((1, side, side, 4))
    mx.eval(decoder.parameters(), encoder.parameters(), latents, picture)
    for run in (lambda: decoder.decode(latents, 4), lambda: encoder.encode(picture, 4)):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(run())
        assert mx.get_peak_memory() - before < 2.9 * activation


def stored_config() -> dict[str, Any]:
    return json.loads((STORED / "vae" / "config.json").read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_scales", [0.5]), ("temperal_downsample", [True]), ("latents_mean", [0.0]), ("latents_std", [1.0] * 17),
        ("z_dim", None), ("is_residual", False), ("patch_size", 2), ("clip_output", True),
    ],
)  # fmt: skip
def test_other_autoencoders_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"vae/config.json.*'{field}'"):
        VaeConfig.read(stored_config() | {field: value}, "vae/config.json")
