"""The original single file + ae.safetensors gives the very picture that the same weights give as a diffusers folder.

The tables that rename it are compared with diffusers' own converter in tests/parity/test_flux_original.py.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_imagegen import load
from mlx_imagegen.autoencoders.kl import Autoencoder, VaeConfig
from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.errors import CheckpointError, MissingFileError
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.keys import LAYOUT, ORIGINAL, from_original, original_module
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.loading.names import RowRange
from mlx_imagegen.loading.weights import layers, own_parameters
from tests.draw import drawn_data

STORED = drawn_data() / "flux/dev"
OPTIONS = {"seed": 3, "steps": 2, "width": 32, "height": 48, "guidance": 2.0, "max_sequence_length": 32}
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same random weights in both layouts; heads of 32, so that the axes are a quarter of the published ones."""
    root = tmp_path_factory.mktemp("layouts")
    diffusers, original = root / "diffusers", root / "original"
    shutil.copytree(STORED, diffusers)
    settings = json.loads((STORED / "transformer/config.json").read_text())
    settings |= {"attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": [4, 14, 14], "num_layers": 2}
    (diffusers / "transformer/config.json").write_text(json.dumps(settings))
    config = FluxConfig.read(settings, "config.json")
    transformer = _drawn(FluxTransformer(config), FluxModulators(config))
    save_file(transformer, diffusers / "transformer/diffusion_pytorch_model.safetensors")
    settings = json.loads(
        (STORED / "vae/config.json").read_text()
    )  # the original's norm has 32 groups, and no file says so
    settings |= {"block_out_channels": [32] * 4, "norm_num_groups": 32, "layers_per_block": 1}
    (diffusers / "vae/config.json").write_text(json.dumps(settings))
    vae = _drawn(Autoencoder(VaeConfig.read(settings, "config.json")))
    save_file(vae, diffusers / "vae/diffusion_pytorch_model.safetensors")
    _write_original(diffusers, original, transformer, vae)
    return diffusers, original


def _drawn(*trees: nn.Module) -> Tensors:
    """Random tensors for every parameter, convolutions as torch keeps them."""
    draw = np.random.default_rng(0)
    tensors: Tensors = {}
    for path, layer in (item for tree in trees for item in layers(tree)):
        for name, value in own_parameters(layer).items():
            array = draw.normal(0, 0.1, value.shape).astype(np.float32)
            tensors[f"{path}.{name}"] = np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array
    return tensors


def _write_original(diffusers: Path, original: Path, tensors: Tensors, vae: Tensors) -> None:
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(diffusers / name, original / name)
    modules = {pattern.format(i=i) for pattern in ORIGINAL for i in range(3)}
    names = [f"{module}.{kind}" for module in sorted(modules) for kind in ("weight", "bias", "scale")]
    save_file(_fused(tensors, names, from_original), original / "flux1-dev.safetensors")
    names = [_original_vae_name(name) for name in vae]
    out = _fused(vae, names, from_ldm)
    out = {
        name: value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value for name, value in out.items()
    }
    save_file(out, original / "ae.safetensors")


def _fused(tensors: Tensors, names: Iterable[str], rename: object) -> Tensors:
    """The inverse of a rename: the parts that a source name supplies, put together."""
    out = {}
    for name in names:
        parts: list[RowRange] = list(rename(name))  # type: ignore[operator]
        if all(part.name in tensors for part in parts) and parts:
            whole = np.concatenate([tensors[part.name] for part in parts])
            out[name] = np.concatenate(np.split(whole, 2)[::-1]) if parts[0].swap_halves else whole
    return out


def _original_vae_name(name: str) -> str:
    """diffusers' name -> the original's, found by trying: the table renames one way only."""
    for old, new in (
        ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.", "mid.attn_1."), ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"),
        ("to_k", "k"), ("to_v", "v"), ("conv_norm_out", "norm_out"), ("resnets", "block"),
        ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"),
        ("down_blocks", "down"), *((f"up_blocks.{i}", f"up.{3 - i}") for i in range(4)),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def test_both_layouts_give_one_picture(folders: tuple[Path, Path]) -> None:
    pictures = [np.asarray(load(folder).generate("a fox", **OPTIONS).image) for folder in folders]
    assert pictures[0].std() > 1 and np.array_equal(*pictures)


def test_the_picture_depends_on_the_swapped_halves(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers, original = folders
    monkeypatch.setitem(vars(LAYOUT), "swapped", ())
    pictures = [np.asarray(load(folder).generate("a fox", **OPTIONS).image) for folder in (diffusers, original)]
    assert not np.array_equal(*pictures)


def test_an_incomplete_folder_names_the_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "cut")
    (tmp_path / "cut/ae.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"ae\*\.safetensors"):
        load(tmp_path / "cut")


def test_a_foreign_single_file_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "foreign")
    save_file({"model.weight": np.zeros((4, 4), np.float32)}, tmp_path / "foreign/flux1-dev.safetensors")
    with pytest.raises(CheckpointError, match="img_in.weight"):
        load(tmp_path / "foreign")


def test_rows_of_fused_modules() -> None:
    targets = original_module("single_blocks.11.linear1")
    assert [(t.name.rpartition(".")[2], t.start, t.share, t.of) for t in targets] == [
        ("to_q", 0, 1, 7), ("to_k", 1, 1, 7), ("to_v", 2, 1, 7), ("proj_mlp", 3, 4, 7),
    ]  # fmt: skip
    assert original_module("double_blocks.3.elsewhere") == []


def check_split(tensors: Mapping[str, np.ndarray], renamed: Mapping[str, np.ndarray], rename: object) -> None:
    """Our table on `tensors` equals `renamed`, name by name and value by value."""
    ours: Tensors = {}
    for name, value in tensors.items():
        for part in rename(name):  # type: ignore[operator]
            unit = len(value) // part.of
            rows = value[part.start * unit : (part.start + part.share) * unit]
            ours[part.name] = np.concatenate(np.split(rows, 2)[::-1]) if part.swap_halves else rows
    assert sorted(ours) == sorted(renamed)
    for name, value in renamed.items():
        assert np.array_equal(ours[name].squeeze(), value.squeeze()), name
