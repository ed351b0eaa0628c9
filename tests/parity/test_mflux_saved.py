"""Folders that mflux's own loader, quantizer and saver write of small models; benchmarks/peers/setup.py installs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.loading.weights import Weights
from tests.draw import drawn_data

ROOT = Path(__file__).parents[2]
MFLUX = ROOT / "benchmarks/peers/.venv-mflux/bin/python"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not MFLUX.exists(), reason="python benchmarks/peers/setup.py makes its environment"),
]
MODELS = {
    "flux1": ("flux/dev", "dev"),
    "qwen_image": ("qwen_image/image", "qwen-image"),
    "z_image": ("z_image/turbo", "z-image-turbo"),
    "flux2": ("flux2/klein", "flux2-klein-base-4b"),
    "flux3": ("flux3/klein", "flux3-image-klein"),
    "qwen_image_21": ("qwen_image_21/model", "qwen-image-2.1"),
}
# mflux has the depths of the published autoencoders, and widens where they do.
DEEP = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "norm_num_groups": 32}
DEEP |= {
    f"{kind}_block_types": [f"{name}2D"] * 4 for kind, name in (("down", "DownEncoderBlock"), ("up", "UpDecoderBlock"))
}
WAN = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
# What the published text encoders' names begin with; newer transformers leaves it out.
PREFIXES = {"flux1": "text_model.", "z_image": "model."}
GROUP = 32  # of small models' rows
OPTIONS = {"seed": 3, "steps": 2, "width": 32, "height": 32}


def as_published(family: str, folder: Path) -> Path:
    """The stored draw with names and depths that mflux expects."""
    shutil.copytree(drawn_data() / MODELS[family][0], folder)
    if family != "qwen_image_21":  # whose autoencoder mflux makes by its config.json
        config = json.loads((folder / "vae/config.json").read_text()) | (WAN if family == "qwen_image" else DEEP)
        (folder / "vae/config.json").write_text(json.dumps(config))
        subprocess.run([sys.executable, ROOT / "tests/references/redrawn_vae.py", folder / "vae"], check=True)
    else:
        path = folder / "text_encoder/config.json"
        config = json.loads(path.read_text())
        rope = config["text_config"]["rope_parameters"]
        config["text_config"] |= {"rope_scaling": rope, "rope_theta": rope["rope_theta"]}
        path.write_text(json.dumps(config))
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    if prefix := PREFIXES.get(family):
        save_file({prefix + name.removeprefix(prefix): value for name, value in load_file(path).items()}, path)
    index = {"weight_map": dict.fromkeys(load_file(path), path.name)}
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def saved_by_mflux(family: str, folder: Path, out: Path, *bits: str) -> Path:
    script = [MFLUX, ROOT / "tests/references/mflux_saved.py", "save", family, folder, out, *bits]
    subprocess.run(script, check=True, capture_output=True)
    (out / "mflux_model.json").write_text(json.dumps({"model_name": MODELS[family][1]}))
    for path in folder.glob("*/config.json"):  # a small model's sizes; mflux knows the published ones
        shutil.copyfile(path, out / path.relative_to(folder))
    no_weights = shutil.ignore_patterns("*.safetensors*", "config.json")
    for place in ("tokenizer", "tokenizer_2", "processor", "text_encoder"):
        if (folder / place).is_dir():
            shutil.copytree(folder / place, out / place, dirs_exist_ok=True, ignore=no_weights)
    return out


def check_weights(ours: Weights, original: Weights, bits: int = 0) -> int:
    """Every tensor is the original's, or its codes, or (in a layer that takes none) their numbers. Gives how many are
    packed."""
    for name in original.needed & original.slices.keys():
        path, _, kind = name.rpartition(".")
        value = original.slices[name].read()
        if kind == "weight" and (packing := ours.stored.get(path)):
            parts = mx.quantize(value, packing.group_size, packing.bits)
            for part, expected in zip(("weight", "scales", "biases"), parts, strict=True):
                assert mx.array_equal(ours.slices[f"{path}.{part}"].read(), expected), f"{path}.{part}"
        else:
            if bits and ours.slices[name].unpacked:
                value = mx.dequantize(*mx.quantize(value.reshape(len(value), -1), GROUP, bits), GROUP, bits)
            found = ours.slices[name].read().reshape(-1)  # mflux keeps some in 16 bits
            expected = value.reshape(-1).astype(found.dtype).astype(mx.float32)
            assert np.allclose(found.astype(mx.float32), expected, atol=1e-6), name
    return len(ours.stored)


@pytest.mark.parametrize("family", MODELS)
def test_a_folder_without_bits_gives_the_same_picture(family: str, tmp_path: Path) -> None:
    folder = as_published(family, tmp_path / "diffusers")
    saved = saved_by_mflux(family, folder, tmp_path / "saved")
    ours, theirs = load(saved), load(folder)
    assert ours.model.manifest.name.startswith(MODELS[family][1].replace("image-klein", "klein")) or family == "flux1"
    for component, weights in theirs.family.weights.items():
        check_weights(ours.family.weights[component], weights)
    options = OPTIONS | ({} if family == "qwen_image_21" else {"max_sequence_length": 96})
    pictures = [np.array(each.generate("a red fox", **options).image, np.int16) for each in (ours, theirs)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 and pictures[1].std() > 4


@pytest.mark.parametrize(
    "family", sorted(MODELS.keys() - {"qwen_image_21"})
)  # whose small model has no rows of whole groups
def test_a_folder_with_bits_has_mlxs_codes(family: str, tmp_path: Path) -> None:
    folder = as_published(family, tmp_path / "diffusers")
    ours, theirs = load(saved_by_mflux(family, folder, tmp_path / "saved", "8")), load(folder)
    packed = [
        check_weights(ours.family.weights[component], weights, 8)
        for component, weights in theirs.family.weights.items()
    ]
    assert sum(packed) > 0
