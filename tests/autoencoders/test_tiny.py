"""Tiny decoders: found in the cache, held to their layers written out, the same in strips."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_imagegen.autoencoders.tiny import WIDTH, TinyDecoder, open_tiny_decoder, weight_bytes
from mlx_imagegen.errors import MismatchError, RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.pipeline import load
from mlx_imagegen.planning.fitting import check_fits
from mlx_imagegen.planning.plan import plan, strips_bytes
from mlx_imagegen.result import StepEvent
from tests.test_threads import in_a_thread


def write_decoder(path: Path, channels: int, pooled: bool) -> dict[str, mx.array]:
    """As published: torch's layout, 16 bits, an encoder in the same file."""
    keys = iter(mx.random.split(mx.random.key(7), 200))
    weights: dict[str, mx.array] = {"encoder.layers.0.weight": mx.zeros((64, 3, 3, 3))}
    for name, value in tree_flatten(TinyDecoder(channels, pooled).parameters()):
        drawn = mx.random.normal(value.shape, key=next(keys)) * (2 / (value.size / value.shape[0])) ** 0.5 * 0.8
        if value.ndim == 1:
            drawn = mx.random.normal(value.shape, key=next(keys)) / 10 + (name.endswith("pool.1.weight"))
        wide = drawn.transpose(0, 3, 1, 2) if value.ndim == 4 else drawn[..., None, None] if value.ndim == 2 else drawn
        weights[name] = mx.contiguous(wide).astype(mx.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), weights)
    return weights


def written_out(weights: dict[str, mx.array], z: mx.array) -> np.ndarray:
    """madebyollin's taesd.py, layer after layer; z [1, C, h, w]"""

    def conv(name: str, x: mx.array) -> mx.array:
        weight = weights[f"{name}.weight"].astype(mx.float32).transpose(0, 2, 3, 1)
        out = mx.conv2d(x, weight, padding=weight.shape[1] // 2)
        return out + weights[f"{name}.bias"].astype(mx.float32) if f"{name}.bias" in weights else out

    def block(name: str, x: mx.array) -> mx.array:
        if f"{name}.pool.0.weight" in weights:
            norm = nn.GroupNorm(4, 256, pytorch_compatible=True)
            norm.weight, norm.bias = (
                weights[f"{name}.pool.1.{each}"].astype(mx.float32) for each in ("weight", "bias")
            )
            x = x + conv(f"{name}.pool.3", nn.relu(norm(conv(f"{name}.pool.0", x))))
        y = nn.relu(conv(f"{name}.conv.0", x))
        return nn.relu(conv(f"{name}.conv.4", nn.relu(conv(f"{name}.conv.2", y))) + x)

    x = nn.relu(conv("decoder.layers.0", mx.tanh(z.transpose(0, 2, 3, 1) / 3) * 3))
    for index in range(2, 18):
        name = f"decoder.layers.{index}"
        if index in (5, 10, 15):
            x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
        else:
            x = conv(name, x) if index in (6, 11, 16) else block(name, x)
    return np.array(conv("decoder.layers.18", x)) * 2 - 1


@pytest.mark.parametrize(("channels", "pooled"), [(16, False), (32, True)])
def test_decoding_is_the_published_one_in_strips_too(channels: int, pooled: bool, tmp_path: Path) -> None:
    weights = write_decoder(tmp_path / "tiny.safetensors", channels, pooled)
    decoder = open_tiny_decoder(tmp_path / "tiny.safetensors", channels)
    z = 2 * mx.random.normal((1, channels, 4, 3), key=mx.random.key(1))
    expected = written_out(weights, z)
    assert expected.shape == (1, 32, 24, 3) and expected.std() > 0.05
    for rows in (None, 3):
        np.testing.assert_allclose(np.array(decoder.decode(z, rows)), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU's strips hold more at once")
def test_the_plan_counts_what_decoding_holds(tmp_path: Path) -> None:
    """At 512x512 the peak was measured as 401 MB, and 403 are planned; here at 64x64."""
    write_decoder(tmp_path / "tiny.safetensors", 32, True)
    decoder, latents = open_tiny_decoder(tmp_path / "tiny.safetensors", 32), mx.zeros((1, 32, 8, 8))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    pixels = decoder.decode(latents)
    mx.eval(pixels)
    held = mx.get_peak_memory() - before
    assert strips_bytes(64 * 64, WIDTH, WIDTH, gpu=False, slack=0) == pytest.approx(held, rel=0.1)
    assert weight_bytes() == sum(value.nbytes for _, value in tree_flatten(decoder.parameters()))


def test_a_preview_that_decodes_is_part_of_the_denoising_stage_s_plan() -> None:
    (job,) = (pipeline := load("flux-demo")).jobs("a fox", seed=1, width=512, height=512)
    plain, tiny, full = (
        {stage.name: stage for stage in plan(pipeline.family, job.settings, gpu=True, preview=preview).stages}
        for preview in ("fast", "tiny", "full")
    )
    shown = weight_bytes() + strips_bytes(512 * 512, WIDTH, WIDTH, gpu=True)
    assert tiny["denoise"].working_bytes == shown > plain["denoise"].working_bytes
    decode = plain["decode"]
    assert full["denoise"].working_bytes == decode.resident_bytes + decode.working_bytes
    assert all(stages["decode"] == decode for stages in (tiny, full))
    assert check_fits(pipeline.family, replace(job, preview="tiny"), pipeline.model.manifest).working_bytes > shown


def test_a_decoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path / "tiny.safetensors", 4, False)
    with pytest.raises(MismatchError, match=r"decoder\.layers\.0\.weight"):
        open_tiny_decoder(tmp_path / "tiny.safetensors", 16)


def test_models_name_the_decoder_of_their_latents() -> None:
    """TAEF1 and TAEF2 read what these colours read."""
    known = {name: manifest.extras for name, manifest in manifests().items()}
    for extras in known.values():
        decoder = {"flux": "taef1", "flux2": "taef2"}.get(extras.get("latent_rgb", ""), "")
        assert (extras.get("tiny_autoencoder") or "").split("/")[1:2] == ([decoder] if decoder else [])
    assert known["flux-kontext-dev"]["tiny_autoencoder"] == "madebyollin/taef1/diffusion_pytorch_model.safetensors"
    assert known["flux2-dev"]["tiny_autoencoder"] == "madebyollin/taef2/taef2.safetensors"


def test_a_preview_by_the_decoder_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.previews.cache_folder", lambda: tmp_path)
    pipeline, events = load("flux-demo"), list[StepEvent]()
    small: dict[str, Any] = {"width": 64, "height": 96, "steps": 2, "seed": 5}
    with pytest.raises(RequestError, match="no tiny decoder is known for flux-demo"):
        pipeline.generate("a fox", preview="tiny", **small)
    monkeypatch.setitem(pipeline.model.manifest.extras, "tiny_autoencoder", "somebody/tiny/tiny.safetensors")
    with pytest.raises(RequestError, match="somebody/tiny is not in .*hf download somebody/tiny tiny.safetensors"):
        pipeline.generate("a fox", preview="tiny", **small)
    folder = tmp_path / "models--somebody--tiny"
    weights = write_decoder(folder / "snapshots" / "abc" / "tiny.safetensors", 16, False)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    latents = list[mx.array]()
    unpack = type(pipeline.family).unpack
    monkeypatch.setattr(type(pipeline.family), "unpack", lambda *given: latents.append(unpack(*given)) or latents[-1])
    pipeline.generate("a fox", preview="tiny", on_step=events.append, **small)
    shown = np.asarray(in_a_thread(events[-1].preview), np.float64)
    expected = (written_out(weights, latents[-1].astype(mx.float32))[0] / 2 + 0.5).clip(0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51 and shown.shape == (96, 64, 3) and shown.std() > 5
