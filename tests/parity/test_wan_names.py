"""Qwen-Image's autoencoder in the names of Wan 2.1, renamed as diffusers' own converter does it."""

import json

import pytest

from mlx_imagegen.autoencoders.layouts import from_wan
from mlx_imagegen.hub.tensor_shapes import each_name
from tests.comfy_files import NAMES

pytestmark = pytest.mark.parity


def test_every_name_is_diffusers() -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    data = json.loads((NAMES / "Qwen-Image/vae.json").read_text())
    published = [name for names in data["tensors"] for name in each_name(names)]
    theirs = wan_names(published)
    converted = convert_wan_vae_to_diffusers({name: name for name in theirs})
    ours = {wan: target.name for wan in theirs for target in from_wan(wan)}
    assert ours == {wan: name for name, wan in converted.items()} and set(converted) == set(published)


def wan_names(names: list[str]) -> list[str]:
    """Every name that Wan's modules can have whose diffusers' name is one of these."""
    kinds = [f"residual.{i}.{p}" for i in (0, 2, 3, 6) for p in ("gamma", "weight", "bias")]
    kinds += [f"{m}.{p}" for m in ("shortcut", "resample.1", "time_conv", "to_qkv", "proj") for p in ("weight", "bias")]
    kinds += ["norm.gamma"]
    modules = [f"{half}coder.middle.{i}" for half in ("en", "de") for i in range(3)]
    modules += [f"encoder.downsamples.{i}" for i in range(11)] + [f"decoder.upsamples.{i}" for i in range(15)]
    candidates = [f"{module}.{kind}" for module in modules for kind in kinds]
    candidates += [
        f"{half}coder.{m}.{p}" for half in ("en", "de") for m in ("conv1", "head.2") for p in ("weight", "bias")
    ]
    candidates += [f"{half}coder.head.0.gamma" for half in ("en", "de")]
    candidates += [f"conv{i}.{p}" for i in (1, 2) for p in ("weight", "bias")]
    return [name for name in candidates for target in from_wan(name) if target.name in names]
