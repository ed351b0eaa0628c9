"""config.json's `quantization` in MLX's common form, of models that mlx.nn.quantize itself has written."""

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.keys import from_original
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.layers.linear import Linear, Packing, unpacked
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import layers, open_weights
from tests.tiny import draw_flux, to_original

Quantization = dict[str, Any]
Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]


def quantized(
    tensors: dict[str, mx.array], linears: Collection[str], tables: Collection[str] = (), **options: Any
) -> dict[str, mx.array]:
    """The tensors after mlx.nn.quantize(**options) of a model with these linear layers and embedding tables."""
    root = nn.Module()
    for path in (*linears, *tables):
        weight = tensors[f"{path}.weight"]
        rows, columns = weight.shape
        layer = nn.Embedding(rows, columns) if path in tables else nn.Linear(columns, rows, f"{path}.bias" in tensors)
        layer.update({name: tensors[f"{path}.{name}"] for name in ("weight", "bias") if f"{path}.{name}" in tensors})
        *parents, leaf = path.split(".")
        node = root
        for name in parents:
            node = node.setdefault(name, nn.Module())
        node[leaf] = layer
    nn.quantize(root, **options)
    rest = {name: value for name, value in tensors.items() if name.rpartition(".")[0] not in {*linears, *tables}}
    return rest | dict(tree_flatten(root.parameters()))


def rewrite(folder: Path, linears: Collection[str], tables: Collection[str], **options: Any) -> dict[str, mx.array]:
    """Quantizes the one file in a component's folder, in place."""
    (path,) = folder.glob("*.safetensors")
    tensors = quantized(dict(mx.load(str(path))), linears, tables, **options)
    mx.save_safetensors(str(path), tensors)
    return tensors


def write_config(folder: Path, quantization: Quantization) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(read_json(path) | {"quantization": quantization}))


def picture(folder: Path, **parameters: Any) -> np.ndarray:
    return np.array(load(folder).generate("a red fox", steps=2, seed=3, width=64, height=64, **parameters).image)


@pytest.mark.parametrize(
    ("model", "part", "mode", "bits"),
    [
        ("qwen-demo", "transformer", "mxfp8", 8),
        ("qwen-demo", "text_encoder", "affine", 6),
        ("hidream-demo", "transformer", "affine", 4),
    ],
)
def test_the_same_picture_as_from_our_own_form(tmp_path: Path, model: str, part: str, mode: str, bits: int) -> None:
    manifest = manifests()[model]
    assert manifest.bundled is not None
    plain = picture(manifest.bundled)
    shutil.copytree(manifest.bundled, tmp_path, dirs_exist_ok=True)
    family = load(manifest.bundled).family
    weights = family.weights[part]
    folder = tmp_path / weights.checkpoint.paths[0].parent.relative_to(manifest.bundled)
    named = {name: part.name.rpartition(".")[0] for name, part in weights.slices.items()}
    linears = [named[f"{path}.weight"] for path in weights.linears]
    tables = [named[name] for name in weights.tables]
    exception = linears[1]  # stays dense

    def predicate(path: str, layer: nn.Module) -> bool:
        return path != exception and layer.weight.shape[-1] % 32 == 0

    numbers = {"group_size": 32, "bits": bits, "mode": mode}
    tensors = rewrite(folder, linears, tables, class_predicate=predicate, **numbers)
    packed = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    assert len(packed) > len(linears) / 2 and packed >= set(tables)
    pictures = []
    for quantization in (
        numbers,  # packed where there are scales
        numbers | {exception: False},
        dict.fromkeys(packed, numbers),  # ours, by the file's names
        {ours.removesuffix(".weight"): numbers for ours in named if ours.endswith(".weight") and named[ours] in packed},
    ):
        write_config(folder, quantization)
        pictures.append(picture(tmp_path))
    assert not np.array_equal(pictures[0], plain)
    assert all(np.array_equal(each, pictures[-1]) for each in pictures)


def test_fused_modules_by_the_file_s_names(tmp_path: Path) -> None:
    """FLUX.1's original file has q, k and v in one linear layer: its entry is for three of ours."""
    draw_flux(tmp_path)
    where = tmp_path / "transformer" / "config.json"
    config = FluxConfig.read(read_json(where), where)
    to_original(tmp_path)
    tensors = dict(mx.load(str(tmp_path / "flux1-tiny.safetensors")))
    linears = [name.removesuffix(".weight") for name, value in tensors.items() if value.ndim == 2]
    numbers = {"group_size": 32, "bits": 4}
    entries = {
        "double_blocks.1.img_attn.qkv": {"group_size": 32, "bits": 8},
        "single_blocks.0.linear2": False,
        "final_layer.linear": True,
    }

    def predicate(path: str, layer: nn.Module) -> bool | dict[str, int]:
        return layer.weight.shape[-1] % 32 == 0 and entries.get(path, True)

    packed = quantized(tensors, linears, class_predicate=predicate, **numbers)
    mx.save_safetensors(str(tmp_path / "flux1-tiny.safetensors"), packed)
    weights = open_weights(
        "transformer",
        open_checkpoint(tmp_path / "flux1-tiny.safetensors"),
        [FluxTransformer(config), FluxModulators(config)],
        rename=from_original,
        config={"quantization": numbers | entries},
    )
    assert weights.stored["transformer_blocks.1.attn.to_k"] == Packing(8, 32)
    assert weights.stored["transformer_blocks.0.attn.to_k"] == weights.stored["proj_out"] == Packing(4, 32)
    assert "single_transformer_blocks.0.proj_out" not in weights.stored
    model = dict(layers(weights.fill(FluxTransformer(config), dtype=mx.bfloat16)))
    for block, bits in ((0, 4), (1, 8)):
        codes = {name: packed[f"double_blocks.{block}.img_attn.qkv.{name}"] for name in ("weight", "scales", "biases")}
        fused = unpacked(codes, Packing(bits, 32))
        for want, part in zip(mx.split(fused, 3), "qkv", strict=True):
            layer = model[f"transformer_blocks.{block}.attn.to_{part}"]
            assert isinstance(layer, Linear) and layer.packing == Packing(bits, 32)
            assert mx.array_equal(unpacked(layer, layer.packing), want)


def one_layer(folder: Path, quantization: Quantization, bits: int = 4) -> Linear:
    """A file with one linear layer of 128 columns, packed in groups of 64, read with this `quantization`."""
    tree = nn.Module()
    tree.proj = Linear(128, 32)
    tensors = {"proj.weight": mx.random.normal((32, 128), key=mx.random.key(0)), "proj.bias": mx.zeros((32,))}
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), quantized(tensors, ["proj"], bits=bits, group_size=64))
    weights = open_weights("transformer", open_checkpoint(path), [tree], config={"quantization": quantization})
    filled = nn.Module()
    filled.proj = Linear(128, 32)
    return weights.fill(filled).proj  # type: ignore[no-any-return]


def test_what_mlx_takes_where_an_entry_gives_no_number(tmp_path: Path) -> None:
    assert one_layer(tmp_path, {"proj": {"bits": 4}}).packing == Packing(4, 64)
    assert one_layer(tmp_path, {"proj": {"bits": 3}}, bits=3).packing == Packing(3, 64)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"bits": 8, "group_size": 64}, "proj should have 8 bits in groups of 64, and has 4 bits in groups of 64"),
        ({"bits": 4, "group_size": 32}, "proj should have 4 bits in groups of 32, and has 4 bits in groups of 64"),
        ({"bits": 4, "proj": {"bits": 8}}, "proj should have 8 bits in groups of 64, and has 4 bits in groups of 64"),
    ],
)
def test_numbers_that_do_not_fit_the_shapes_are_one_error(
    tmp_path: Path, quantization: Quantization, expected: str
) -> None:
    with pytest.raises(MismatchError, match="'quantization' does not describe") as error:
        one_layer(tmp_path, quantization)
    assert expected in str(error.value) and "correct 'quantization'" in str(error.value)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (
            {"bits": 7, "group_size": 64},
            "for every layer: bits 7 is not possible; MLX's affine packing has 2, 3, 4, 5, 6, 8",
        ),
        ({"bits": 4, "group_size": 48}, "for every layer: group_size 48"),
        ({"bits": 4, "proj": {"bits": "4"}}, "for 'proj': bits '4'"),
        ({"bits": 4, "mode": "int4"}, "for every layer: mode 'int4' is not one of MLX's: affine"),
    ],
)
def test_numbers_that_mlx_does_not_have(tmp_path: Path, quantization: Quantization, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        one_layer(tmp_path, quantization)
    assert expected in str(error.value)


def test_scales_of_a_layer_that_is_said_to_be_dense(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"2 unexpected: proj.biases, proj.scales"):
        one_layer(tmp_path, {"bits": 4, "proj": False})


def test_numbers_for_all_layers_of_a_dense_file_change_nothing(flux_folder: Path) -> None:
    folder = flux_folder / "transformer"
    config = FluxConfig.read(read_json(folder / "config.json"), folder)
    trees = [FluxTransformer(config), FluxModulators(config)]
    quantization = {"group_size": 64, "bits": 4}
    weights = open_weights("transformer", open_checkpoint(folder), trees, config={"quantization": quantization})
    assert not weights.stored and len(weights.linears) > 10


def test_an_entry_for_a_weight_that_is_not_there_is_refused(flux_folder: Path, tmp_path: Path) -> None:
    """The folder would be read as if it said nothing."""
    shutil.copytree(flux_folder, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    for entry in ({"x": {"bits": 4, "group_size": 64}}, {"bits": 4, "group_size": 64, "y.z": True}):
        config.write_text(json.dumps(read_json(config) | {"quantization": entry}))
        with pytest.raises(ConfigError, match="names '(x|y.z)', and the file has no such weight"):
            load(tmp_path / "model")
    config.write_text(json.dumps(read_json(config) | {"quantization": {"bits": 4, "group_size": 64, "y.z": False}}))
    load(tmp_path / "model")
