"""Vision towers in llama.cpp's mmproj files, written by the `gguf` package in its own names, as its converter does: the
features are those of the numbers in their folder, and the file is found next to the text encoder that lacks it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.families import family_spec
from mlx_imagegen.hub.component_folders import unpacked_folder, write_component
from mlx_imagegen.hub.file_info import file_info
from mlx_imagegen.hub.single_files import Component, assemble, components_in, layouts_of
from mlx_imagegen.hub.tensor_shapes import each_name
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.vision import qwen2_5, qwen3
from mlx_imagegen.vision.patches import Patches
from tests.draw import drawn_data
from tests.gguf_files import Drawn, dequantized, encode, write_gguf
from tests.hub.test_gguf_encoders import check_numbers, with_gguf
from tests.hub.test_published_files import published

MODELS = [
    ("qwen_image", "qwen_image/edit", MODEL_ARCH.QWEN2VL),
    ("qwen_image_21", "qwen_image_21/model", MODEL_ARCH.QWEN3VL),
]
FORMATS = {"linear_fc1": MODEL_TENSOR.V_DS_FC1, "linear_fc2": MODEL_TENSOR.V_DS_FC2, "norm": MODEL_TENSOR.V_DS_NORM}
NAMES = gguf.TensorNameMap(MODEL_ARCH.MMPROJ, 32)


def their_name(name: str, levels: list[int]) -> str:
    """As llama.cpp's converter renames: mergers of Qwen3-VL by hand, the others by its table."""
    module, _, parameter = name.removeprefix("model.").rpartition(".")
    if "deepstack" in module:
        _, _, place, part = module.split(".")
        return f"{TENSOR_NAMES[FORMATS[part]].format(bid=levels[int(place)])}.{parameter}"
    if "merger.linear_fc" in module:
        return f"{TENSOR_NAMES[MODEL_TENSOR.V_MMPROJ].format(bid=0 if module.endswith('1') else 2)}.{parameter}"
    if module == "visual.merger.norm":
        return f"{TENSOR_NAMES[MODEL_TENSOR.V_POST_NORM]}.{parameter}"
    return f"{NAMES.get_name(module)}.{parameter}"


def drawn(value: np.ndarray) -> tuple[Drawn, np.ndarray]:
    """In the type that a published file has it in, and its numbers."""
    fits = value.ndim == 2 and value.shape[1] % 32 == 0
    written = encode(value, Kind.Q8_0 if fits else Kind.F16 if value.ndim == 4 else Kind.F32)
    return written, dequantized(written).reshape(value.shape)


def tower_file(folder: Path, out: Path) -> tuple[Component, dict[str, np.ndarray]]:
    """The tower of a text encoder in a file of its own, and the same tensors with the file's numbers."""
    config = read_json(folder / "text_encoder/config.json")["vision_config"]
    levels = config.get("deepstack_visual_indexes", [])
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    packed, numbers = {}, {}
    for name, value in load_file(path).items():
        if "visual." not in name:
            continue
        if name.endswith("patch_embed.proj.weight"):
            frames = [drawn(np.ascontiguousarray(value[:, :, frame])) for frame in (0, 1)]
            packed |= {f"v.patch_embd.weight{end}": frame for end, (frame, _) in zip(("", ".1"), frames, strict=True)}
            numbers[name] = np.stack([each for _, each in frames], 2)
        elif ".qkv." in name and not levels:
            thirds = [drawn(part) for part in np.split(value, 3)]
            for letter, (third, _) in zip("qkv", thirds, strict=True):
                packed[their_name(name.replace("qkv", letter), levels)] = third
            numbers[name] = np.concatenate([each for _, each in thirds])
        else:
            packed[their_name(name, levels)], numbers[name] = drawn(value)
    file = write_gguf(out / "mmproj.gguf", packed, arch="clip")
    (component,) = components_in(file)
    return component, numbers


@pytest.mark.parametrize(("family", "model", "arch"), MODELS)
def test_features_are_those_of_the_tower_s_numbers(tmp_path: Path, family: str, model: str, arch: MODEL_ARCH) -> None:
    stored = drawn_data() / model
    with_file, same, found = with_gguf(stored, tmp_path, arch, family)
    tower, numbers = tower_file(stored, tmp_path)
    assert tower.spec.name == family
    config = read_json(stored / "text_encoder/config.json")
    sizes = tower.found.config["vision_config"]
    assert sizes == {name: config["vision_config"][name] for name in sizes}
    write_component(with_file, found, config, tower.found)
    (path,) = (same / "text_encoder").glob("*.safetensors")
    save_file(load_file(path) | numbers, path)

    opened = [load(each).family for each in (with_file, same)]
    check_numbers(*(each.weights["text_encoder"] for each in opened))
    unpacked = unpacked_folder(with_file)
    assert unpacked
    check_numbers(*(each.weights["text_encoder"] for each in (load(unpacked).family, opened[1])))
    for ours, theirs in zip(*map(features, opened), strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
        assert np.array(theirs).std() > 0


def features(family: Any) -> list[mx.array]:
    """What the tower makes of four patches by four."""
    config = family.files.patches
    numbers = 3 * config.temporal_patch_size * config.patch_size**2
    values = np.random.default_rng(0).standard_normal((16, numbers), np.float32)
    patches = Patches(values, (4, 4), (2, 2))
    if "vision" in family.components:
        return [qwen2_5.encode_patches(family.components["vision"].load(), patches, mx.float32)]
    tower = qwen3.open_tower(family.files.vision, family.files.text)
    embeds, levels = qwen3.encode_patches(tower.load(), [patches], mx.float32)
    return [embeds, *levels]


def comfy_folder(tmp_path: Path) -> Path:
    """Qwen-Image-Edit in ComfyUI's folders, the text encoder in GGUF; gives the diffusion model's file."""
    stored = drawn_data() / "qwen_image/edit"
    file = tmp_path / "diffusion_models/qwen-image-edit.safetensors"
    file.parent.mkdir()
    (path,) = (stored / "transformer").glob("*.safetensors")
    shutil.copyfile(path, file)
    encoders = tmp_path / "text_encoders"
    with_gguf(stored, tmp_path / "both", MODEL_ARCH.QWEN2VL, "qwen_image")
    encoders.mkdir()
    (tmp_path / "both/encoder.gguf").rename(encoders / "encoder.gguf")
    tower_file(stored, encoders)
    return file


def test_it_is_found_next_to_the_text_encoder(tmp_path: Path) -> None:
    file = comfy_folder(tmp_path)
    config = read_json(drawn_data() / "qwen_image/edit/transformer/config.json")
    file.with_suffix(".json").write_text(json.dumps({"transformer": config}))
    assembly = assemble(file)
    encoder, tower = assembly.parts["text_encoder"], assembly.additions["text_encoder"]
    assert (encoder.path.name, tower.path.name) == ("encoder.gguf", "mmproj.gguf")
    assert file_info(file)["goes_with"]["text_encoder: its vision tower"] == str(tower.path)
    info = file_info(tower.path)
    assert info["is"] == ["Qwen2.5-VL's vision tower in llama.cpp's names"] and info["used_by"] == "Qwen-Image"


def test_a_tower_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    stored = drawn_data() / "qwen_image/edit"
    with_file, _, found = with_gguf(stored, tmp_path, MODEL_ARCH.QWEN2VL, "qwen_image")
    tower, _ = tower_file(stored, tmp_path)
    rest = {name: each for name, each in tower.found.tensors.items() if name != "v.blk.1.attn_k.bias"}
    config = read_json(stored / "text_encoder/config.json")
    write_component(with_file, found, config, replace(tower.found, tensors=rest))
    with pytest.raises(
        CheckpointError, match=r"mmproj.gguf has 2 of the 3 tensors for 'visual.blocks.1.attn.qkv.bias'"
    ):
        load(with_file)


@pytest.mark.parametrize(
    ("place", "family", "levels"),
    [("Qwen-Image/text_encoder", "qwen_image", []), ("qwen-image-2.1/text_encoder", "qwen_image_21", [8, 16, 24])],
)
def test_published_names_lead_back(place: str, family: str, levels: list[int]) -> None:
    """Of towers of the published depth; llama.cpp's converter has the mergers under the blocks that they follow."""
    published_tensors = published(place)["tensors"]
    names = [name for names in published_tensors for name in each_name(names) if "visual." in name]
    assert published(place)["config"]["vision_config"].get("deepstack_visual_indexes", []) == levels
    apart = [name for name in names if not name.endswith("patch_embed.proj.weight")]
    theirs = {their_name(name, levels): name for name in apart}
    assert len(theirs) == len(names) - 1 > 300
    (layout,) = (each for each in layouts_of(family_spec(family)) if each.adds)
    assert layout.rename_among
    rename = layout.rename_among(dict.fromkeys(theirs))  # type: ignore[arg-type]
    assert [target.name for name in theirs for target in rename(name)] == apart
