"""Folders saved by mflux: its names (tests/references/mflux_names.py), its packing and MLX's order of axes."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.cli import main
from mlx_imagegen.errors import CheckpointError, ConfigError, LoraError
from mlx_imagegen.families import family_spec, open_family
from mlx_imagegen.hub.file_info import folder_info
from mlx_imagegen.hub.mlx_folders import saved_name, saved_packings
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.hub.single_files import layouts_of
from mlx_imagegen.hub.tensor_shapes import each_name
from mlx_imagegen.loading.safetensors import read_header
from mlx_imagegen.loading.single_file import SingleFile
from mlx_imagegen.loading.weights import WeightTransforms
from tests.comfy_files import NAMES, draw_flux, read_tensors
from tests.draw import drawn_data

# What mflux's saver writes of the published models at 4 bits (tests/references/mflux_saved.py): FAMILY/COMPONENT ->
# bits, 0 for numbers -> name, or a run of names -> the numbers' shape.
SAVED: dict[str, dict[str, dict[str, list[int]]]] = json.loads((NAMES / "mflux_saved.json").read_text())
TABLES: dict[str, dict[str, str]] = json.loads((NAMES / "mflux.json").read_text())
OPTIONS = {"seed": 3, "steps": 2, "width": 32, "height": 48, "guidance": 2.0, "max_sequence_length": 32}
GROUP = 32  # the small model has few layers that are 64 wide


def layout(table: str) -> SingleFile:
    family, component = table.split("/")
    found = [each for each in layouts_of(family_spec(family)) if each.component == component]
    saved = [each for each in found if "saved by mflux" in each.title]
    return (saved or found)[0]  # CLIP has the same names everywhere


def numbered(pattern: str, number: int) -> str:
    return re.sub(r"\{\w+\}", str(number), pattern)


@pytest.mark.parametrize("table", TABLES)
def test_names_are_mfluxs_own(table: str) -> None:
    rename = layout(table).rename
    for saved, diffusers in TABLES[table].items():
        assert [target.name for target in rename(numbered(saved, 0))] == [numbered(diffusers, 0)]
        if "relative_attention_bias" not in saved:  # mflux has the first block's in every block
            assert [target.name for target in rename(numbered(saved, 3))] == [numbered(diffusers, 3)]


def save_as_mflux(folder: Path, diffusers: Path, bits: int | None) -> tuple[Path, Path]:
    """The folder, and one in diffusers' layout of the same numbers."""
    same = folder.with_name("numbers")
    shutil.copytree(diffusers, same)
    for component in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        saved, numbers = {}, {}
        tensors = read_tensors(diffusers / component)
        if component == "text_encoder":
            tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
        for name, value in tensors.items():
            numbers[name] = mx.array(value)
            for theirs in mflux_names(f"flux1/{component}", name):
                stored = mx.array(np.moveaxis(value, 1, -1) if value.ndim == 4 else value)
                if bits and value.ndim == 2 and value.shape[1] % GROUP == 0:
                    parts = mx.quantize(stored, GROUP, bits)
                    numbers[name] = mx.dequantize(*parts, GROUP, bits)
                    module = theirs.removesuffix("weight")
                    saved |= dict(zip((theirs, f"{module}scales", f"{module}biases"), parts, strict=True))
                else:
                    saved[theirs] = stored
        mx.save_safetensors(str(next((same / component).glob("*.safetensors"))), numbers)
        write_component(folder / component, saved, bits)
        shutil.copyfile(diffusers / component / "config.json", folder / component / "config.json")
    for tokenizer in diffusers.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)
    return folder, same


def mflux_names(table: str, name: str) -> list[str]:
    """What mflux calls a tensor; the table of distances it has in every block."""
    for saved, diffusers in TABLES[table].items():
        parts = re.split(r"(\{\w+\})", diffusers)
        pattern = "".join(r"(\d+)" if part.startswith("{") else re.escape(part) for part in parts)
        if "relative_attention_bias" in saved and name == diffusers:
            return [numbered(saved, 0), numbered(saved, 1)]
        if found := re.fullmatch(pattern, name):
            numbers = dict(zip(re.findall(r"\{\w+\}", diffusers), found.groups(), strict=True))
            return [re.sub(r"\{\w+\}", lambda part, numbers=numbers: numbers[part[0]], saved)]
    assert "time_conv" in name, name  # mflux leaves out some of those that act only between frames
    return []


def write_component(folder: Path, tensors: Mapping[str, mx.array], bits: int | None) -> None:
    folder.mkdir(parents=True)
    metadata = {"quantization_level": str(bits), "mflux_version": "0.24.0"}
    mx.save_safetensors(str(folder / "0.safetensors"), dict(tensors), metadata)
    index = {"metadata": metadata, "weight_map": dict.fromkeys(tensors, "0.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def picture(model: Path) -> np.ndarray:
    return np.array(load(model).generate("a red fox", **OPTIONS).image, np.int16)


@pytest.mark.parametrize("bits", [None, 3, 4, 6, 8])
def test_a_saved_folder_gives_the_picture_of_its_numbers(tmp_path: Path, bits: int | None) -> None:
    saved, numbers = save_as_mflux(tmp_path / "saved", draw_flux(tmp_path / "diffusers"), bits)
    found = find(str(saved))
    assert (found.manifest.name, found.file) == ("flux-dev", saved)
    ours, theirs = picture(saved), picture(numbers)
    assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 10


def test_a_control_network_saved_with_its_model_is_refused_by_name(tmp_path: Path) -> None:
    write_component(tmp_path / "dev/transformer", {"x_embedder.weight": mx.ones((4, 4))}, 4)
    write_component(tmp_path / "dev/transformer_controlnet", {"controlnet_x_embedder.weight": mx.ones((4, 4))}, 4)
    with pytest.raises(
        ConfigError, match="dev/transformer_controlnet is a control network saved by mflux, which is not"
    ):
        load(tmp_path / "dev")


@pytest.mark.parametrize(("bits", "said"), [(None, "not packed"), (4, "packed to 4 bits")])
def test_info_says_who_saved_it(
    tmp_path: Path, bits: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, same = save_as_mflux(tmp_path / "saved", draw_flux(tmp_path / "diffusers"), bits)
    assert main(["info", str(saved), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["saved_by"] == f"mflux 0.24.0, {said}"
    assert (shown["saved_from"], shown["family"], shown["manifest"]) == ("saved", "FLUX.1", "flux-dev")
    assert "saved_by" not in folder_info(same)


def test_packed_layers_stay_packed(tmp_path: Path) -> None:
    saved, _ = save_as_mflux(tmp_path / "saved", draw_flux(tmp_path / "diffusers"), 6)
    family = load(saved).family
    stored = {packing for weights in family.weights.values() for packing in weights.stored.values()}
    assert {(packing.bits, packing.group_size) for packing in stored} == {(6, GROUP)}
    assert "transformer_blocks.0.ff.net.0.proj" in family.weights["transformer"].stored
    assert not family.weights["vae"].stored  # its layers take numbers


def test_bits_that_do_not_fit_the_shapes_are_refused(tmp_path: Path) -> None:
    saved, _ = save_as_mflux(tmp_path / "saved", draw_flux(tmp_path / "diffusers"), 4)
    index = saved / "transformer/model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["metadata"]["quantization_level"] = "5"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"which are not of 5 bits as the metadata says"):
        find(str(saved))
    data["metadata"]["quantization_level"] = "None"
    index.write_text(json.dumps(data))
    with pytest.raises(
        CheckpointError, match=r"its metadata's 'quantization_level' is None, which is no number of bits"
    ):
        find(str(saved))


@pytest.mark.parametrize("codes", [None, mx.array(1, mx.uint32)])
@pytest.mark.parametrize("scales", [mx.ones((4, 4)), mx.array(1.0)])
def test_scales_of_no_packed_weight_are_refused(tmp_path: Path, codes: mx.array | None, scales: mx.array) -> None:
    tensors = {"proj.scales": scales} | ({} if codes is None else {"proj.weight": codes})
    write_component(tmp_path / "transformer", tensors, 4)
    stored = read_header(tmp_path / "transformer/0.safetensors")[0]
    with pytest.raises(CheckpointError, match="transformer: 'proj' has scales of no packed weight"):
        saved_packings(tmp_path / "transformer", stored)


@pytest.mark.parametrize(
    ("family", "place", "parts"),
    [
        ("flux1", "FLUX.1-dev", ("transformer", "text_encoder", "text_encoder_2", "vae")),
        ("qwen_image", "Qwen-Image", ("transformer", "text_encoder", "vae")),
    ],
)
def test_the_published_models_as_mflux_saves_them_bind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, place: str, parts: tuple[str, ...]
) -> None:
    """By names and shapes alone, at 4 bits in mflux's groups of 64."""
    for component in parts:
        header: dict[str, tuple[str, list[int]]] = {}
        for names, shape in json.loads((NAMES / place / f"{component}.json").read_text())["tensors"].items():
            for name in each_name(names):
                if not name.startswith("lm_head."):
                    for theirs in mflux_names(f"{family}/{component}", name):
                        header |= saved_shapes(theirs, shape)
        write_hollow(tmp_path / "saved" / component, header)
    stored = drawn_data() / ("flux/dev" if family == "flux1" else "qwen_image/image")
    for tokenizer in stored.glob("tokenizer*"):
        shutil.copytree(tokenizer, tmp_path / "saved" / tokenizer.name)
    found = find(str(tmp_path / "saved"))
    assert found.folder is not None
    weights = open_family(found.manifest, found.folder, WeightTransforms()).weights
    assert {packing.bits for each in weights.values() for packing in each.stored.values()} == {4}


@pytest.mark.parametrize(
    ("family", "name", "manifest", "bits"),
    [
        ("flux1", "FLUX.1-dev-mflux-q4", "flux-dev", {4}),
        ("flux1", "FLUX.1-Kontext-dev-mflux-q4", "flux-kontext-dev", {4}),
        ("qwen_image", "Qwen-Image-mflux-q4", "qwen-image", {4, 8}),
        ("qwen_image", "Qwen-Image-2512-mflux-q4", "qwen-image-2512", {4, 8}),
        ("qwen_image_edit", "Qwen-Image-Edit-2511-mflux-q4", "qwen-image-edit-2511", {4, 8}),
        ("z_image", "Z-Image-mflux-q4", "z-image", {4}),
        ("z_image", "Z-Image-Turbo-mflux-q4", "z-image-turbo", {4}),
        ("flux2", "FLUX.2-klein-4B-mflux-q4", "flux2-klein-4b", {4}),
        ("flux2", "FLUX.2-klein-base-4B-mflux-q4", "flux2-klein-base-4b", {4}),
        ("flux3", "FLUX.3-klein-mflux-q4", "flux3-klein", {4}),
        ("qwen_image_21", "Qwen-Image-2.1-mflux-q4", "qwen-image-2.1", {4}),
        ("qwen_image_21", "Qwen-Image-2.1-Turbo-mflux-q4", "qwen-image-2.1-turbo", {4}),
    ],
)
def test_what_mfluxs_saver_writes_binds(tmp_path: Path, family: str, name: str, manifest: str, bits: set[int]) -> None:
    """Every tensor is taken, with the few modules that mflux packs at other bits, and tables that no module reads."""
    for table in (table for table in SAVED if table.startswith(f"{family}/")):
        write_hollow(tmp_path / name / table.partition("/")[2], saved_header(SAVED[table]))
    for tokenizer in (drawn_data() / "flux/dev" if family == "flux1" else tmp_path).glob("tokenizer*"):
        shutil.copytree(tokenizer, tmp_path / name / tokenizer.name)
    found = find(str(tmp_path / name))
    assert found.manifest.name == manifest and found.folder is not None
    weights = open_family(found.manifest, found.folder, WeightTransforms()).weights
    assert {packing.bits for each in weights.values() for packing in each.stored.values()} == bits


def saved_header(by_bits: Mapping[str, Mapping[str, list[int]]]) -> dict[str, tuple[str, list[int]]]:
    out: dict[str, tuple[str, list[int]]] = {}
    for bits, shapes in by_bits.items():
        for names, shape in shapes.items():
            for name in each_name(names):
                out |= saved_shapes(name, shape, int(bits)) if int(bits) else {name: ("F32", shape)}
    return out


def test_a_saved_models_name_is_its_makers_note_or_its_folders(tmp_path: Path) -> None:
    """The hub's cache has the repository's name above the revision's."""
    component = tmp_path / "models--someone--Z-Image-Turbo-mflux-4bit/snapshots/0123abcd/transformer"
    component.mkdir(parents=True)
    assert saved_name(component) == "models--someone--Z-Image-Turbo-mflux-4bit"
    assert saved_name(tmp_path / "klein-base/transformer") == "klein-base"
    note = component.parent / "mflux_model.json"
    note.write_text(json.dumps({"model_name": "z-image", "base_model": None}))
    assert saved_name(component) == "z-image"
    note.write_text(json.dumps({"model_name": "someone/a-finetune", "base_model": "z-image-turbo"}))
    assert saved_name(component) == "z-image-turbo"


def saved_shapes(name: str, shape: list[int], bits: int = 4) -> dict[str, tuple[str, list[int]]]:
    if len(shape) >= 4:
        return {name: ("BF16", [shape[0], *shape[2:], shape[1]])}
    if len(shape) != 2 or shape[1] % 64:
        return {name: ("BF16", shape)}
    module, grid = name.removesuffix("weight"), ("BF16", [shape[0], shape[1] // 64])
    return {name: ("U32", [shape[0], shape[1] * bits // 32]), f"{module}scales": grid, f"{module}biases": grid}


def write_hollow(folder: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    """A safetensors file whose numbers are holes."""
    header: dict[str, object] = {"__metadata__": {"quantization_level": "4", "mflux_version": "0.24.0"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * (2 if dtype == "BF16" else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "0.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_lora_on_packed_layers_is_refused_as_on_any_packed_folder(tmp_path: Path) -> None:
    saved, _ = save_as_mflux(tmp_path / "saved", draw_flux(tmp_path / "diffusers"), 4)
    names = [f"transformer.transformer_blocks.0.attn.to_q.lora_{part}.weight" for part in "AB"]
    pair = {names[0]: mx.ones((4, 256)), names[1]: mx.ones((256, 4))}
    mx.save_safetensors(str(tmp_path / "lora.safetensors"), pair)
    with pytest.raises(LoraError, match=rf"^{saved} is quantized, and merging into its codes or tables"):
        load(saved, lora=[tmp_path / "lora.safetensors"])
    plain, numbers = save_as_mflux(tmp_path / "plain/saved", draw_flux(tmp_path / "plain/diffusers"), None)
    options = {"lora": [tmp_path / "lora.safetensors"]}
    ours, theirs = (
        np.array(load(each, **options).generate("a", **OPTIONS).image, np.int16) for each in (plain, numbers)
    )
    assert np.abs(ours - theirs).max() <= 1
