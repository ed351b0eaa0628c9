"""Text encoders in llama.cpp's GGUF files, by the `gguf` package's own table of names: recognized by what the file says
that it is, and giving the picture of the numbers in their folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import MODEL_ARCH
from gguf import GGMLQuantizationType as Kind
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import MissingFileError
from mlx_imagegen.hub.component_folders import config_of, write_component
from mlx_imagegen.hub.single_files import components_in
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.single_file import Found
from mlx_imagegen.loading.weights import Weights
from tests.draw import drawn_data
from tests.gguf_files import Drawn, dequantized, encode, write_gguf

BEFORE = re.compile(r"^(model\.language_model\.|language_model\.model\.|model\.|)(?=embed_tokens|layers|norm)")
NOT_TEXT = ("visual.", "vision_tower.", "multi_modal_projector.")
HEAD = 128  # of Mistral, of every size
OPTIONS: dict[str, Any] = {"seed": 1, "steps": 2, "width": 32, "height": 32}


def in_llama_cpps_names(folder: Path, arch: MODEL_ARCH) -> tuple[dict[str, Drawn], dict[str, np.ndarray]]:
    """A text encoder's tensors as llama.cpp's converter writes them, and the folder's own with their numbers."""
    (path,) = folder.glob("*.safetensors")
    config = read_json(folder / "config.json")
    config = config | config.get("text_config", {})
    table = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    packed, numbers = {}, {}
    for name, value in load_file(path).items():
        numbers[name] = value
        if any(part in name for part in NOT_TEXT):
            continue
        theirs = table.get_name(
            BEFORE.sub("model.", name).replace("language_model.lm_head", "lm_head"), (".weight", ".bias")
        )
        kind = Kind.Q8_0 if value.ndim == 2 and value.shape[1] % 32 == 0 else Kind.F32
        drawn = encode(value, kind)
        numbers[name] = dequantized(drawn)
        if arch is MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            rows, _ = drawn
            heads = rows.reshape(-1, 2, HEAD // 2, rows.shape[1]).swapaxes(1, 2)  # as its converter turns them
            drawn = np.ascontiguousarray(heads.reshape(rows.shape)), kind
        packed[str(theirs)] = drawn
    return packed, numbers


def with_gguf(folder: Path, out: Path, arch: MODEL_ARCH, family: str) -> tuple[Path, Path, Found]:
    """Two folders of the same numbers, with the text encoder in GGUF and in its own layout."""
    packed, numbers = in_llama_cpps_names(folder / "text_encoder", arch)
    file = write_gguf(out / "encoder.gguf", packed, arch=gguf.MODEL_ARCH_NAMES[arch])
    (component,) = (each for each in components_in(file) if each.spec.name == family)
    with_file, same = out / "with_file", out / "numbers"
    for copy in (with_file, same):
        shutil.copytree(folder, copy)
    (path,) = (same / "text_encoder").glob("*.safetensors")
    save_file(numbers, path)
    (with_file / "text_encoder" / path.name).unlink()
    write_component(with_file, component.found, read_json(folder / "text_encoder/config.json"))
    return with_file, same, component.found


def with_heads_of_128(folder: Path) -> Path:
    """FLUX.2 [dev]'s stored draw, with Mistral's attention as wide in a head as the published one."""
    shutil.copytree(drawn_data() / "flux2/dev", folder)
    path = folder / "text_encoder/config.json"
    config = json.loads(path.read_text())
    config["text_config"]["head_dim"] = HEAD
    path.write_text(json.dumps(config))
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    dice, tensors = np.random.default_rng(0), load_file(path)
    for name, value in tensors.items():
        if name.startswith("language_model.") and ".self_attn." in name:
            rows, columns = (axis * HEAD // 8 if axis in (8, 16) else axis for axis in value.shape)
            out = "o_proj" in name
            shape = (value.shape[0], columns) if out else (rows, value.shape[1])
            tensors[name] = (dice.standard_normal(shape) / 8).astype(np.float32)
    save_file(tensors, path)
    return folder


def check_numbers(ours: Weights, theirs: Weights) -> None:
    """A picture of a small model hardly shows which rows are where."""
    for name in theirs.needed & theirs.slices.keys():
        packing = ours.stored.get(name.removesuffix(".weight"))
        if packing is None:
            value = ours.slices[name].read()
        else:
            module = name.removesuffix("weight")
            parts = [ours.slices[module + part].read() for part in ("weight", "scales", "biases")]
            value = mx.dequantize(
                parts[0], *(part.astype(mx.float32) for part in parts[1:]), packing.group_size, packing.bits
            )
        np.testing.assert_array_equal(np.array(value), np.array(theirs.slices[name].read()), err_msg=name)


def test_references_without_a_vision_tower_are_refused(tmp_path: Path) -> None:
    with_file, _, _ = with_gguf(drawn_data() / "qwen_image_21/model", tmp_path, MODEL_ARCH.QWEN3VL, "qwen_image_21")
    with pytest.raises(MissingFileError, match=r"encoder.gguf has no vision tower, and reference pictures are read"):
        load(with_file).generate("a fox", references=[Image.new("RGB", (32, 32))], **OPTIONS)


@pytest.mark.parametrize(
    ("family", "model", "arch"),
    [
        ("z_image", "z_image/turbo", MODEL_ARCH.QWEN3),
        ("flux2", "flux2/klein", MODEL_ARCH.QWEN3),
        ("flux3", "flux3/klein", MODEL_ARCH.QWEN3VL),
        ("qwen_image_21", "qwen_image_21/model", MODEL_ARCH.QWEN3VL),
        ("flux2", "flux2/dev", MODEL_ARCH.LLAMA),
    ],
)
def test_an_encoder_gives_the_picture_of_its_numbers(tmp_path: Path, family: str, model: str, arch: MODEL_ARCH) -> None:
    stored = with_heads_of_128(tmp_path / "dev") if arch is MODEL_ARCH.LLAMA else drawn_data() / model
    with_file, same, found = with_gguf(stored, tmp_path, arch, family)
    transformer = read_json(stored / "transformer/config.json")
    assert found.layout.fits(config_of(found, {}), transformer)
    check_numbers(*(load(each).family.weights["text_encoder"] for each in (with_file, same)))
    ours, theirs = (np.array(load(each).generate("a fox", **OPTIONS).image, np.int16) for each in (with_file, same))
    assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 4


@pytest.mark.parametrize(
    ("says", "takers"),
    [("qwen3", {"flux2", "z_image"}), ("qwen3vl", {"flux3", "qwen_image_21"}), ("gemma3", set())],
)
def test_what_the_file_says_tells_qwen3_from_qwen3_vl(tmp_path: Path, says: str, takers: set[str]) -> None:
    packed, _ = in_llama_cpps_names(drawn_data() / "z_image/turbo/text_encoder", MODEL_ARCH.QWEN3)
    file = write_gguf(tmp_path / "encoder.gguf", packed, arch=says)
    assert {each.spec.name for each in components_in(file)} == takers
