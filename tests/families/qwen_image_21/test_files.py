"""Qwen-Image-2.1's published files, name by name and shape by shape, and folders that are not as they should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError, ConfigError, MismatchError, MissingFileError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.qwen_image_21.family import QwenImage21
from mlx_imagegen.families.qwen_image_21.keys import from_single_file
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import WeightTransforms
from tests.families.qwen_image_21.test_qwen_image_21 import MODEL, open_pipeline

PUBLISHED = Path(__file__).parents[4] / "shared/facts/manifests"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL, tmp_path / "model")


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["qwen-image-2.1", "qwen-image-2.1-turbo"])
def test_every_published_tensor_is_bound(name: str) -> None:
    """7.1 billion parameters of the transformer, 7.6 of the language model, 0.34 of the autoencoder."""
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        assert isinstance(family, QwenImage21)
        files = family.files
    needed = {part.component: len(part.needed) for part in (files.transformer, files.text, files.vae)}
    assert needed == {"transformer": 297, "text_encoder": 398, "vae": 226}
    assert (family.size_multiple, family.grid(family_settings())) == (32, (64, 64))
    assert len(files.sigmas) == (8 if name.endswith("turbo") else 0)


def family_settings() -> Any:
    from mlx_imagegen.families.base import Settings

    return Settings(1024, 1024, 1, 1.0)


@pytest.mark.parametrize("model", ["Qwen-Image-2.1", "Qwen-Image-2.1-Turbo"])
@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_the_stored_shapes_are_those_of_the_published_lists(model: str, component: str) -> None:
    path = PUBLISHED / model / f"{component}.json"
    if not path.is_file():
        pytest.skip("the published lists do not lie beside this checkout")
    listed = {name: tuple(entry["shape"]) for name, entry in read_json(path)["tensors"].items()}
    manifest = manifests()["qwen-image-2.1"]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        stored = {name: tensor.shape for name, tensor in family.weights[component].checkpoint.items()}
    assert stored == listed


def test_the_folder_s_own_files_say_which_of_the_two_it_is(copy: Path) -> None:
    assert recognize(copy).name == "qwen-image-2.1"
    change(copy / "model_index.json", sample_sigmas=[1.0, 0.85, 0.4])
    assert recognize(copy).name == "qwen-image-2.1-turbo"
    (copy / "model_index.json").unlink()
    assert recognize(copy).name == "qwen-image-2.1"


def test_an_older_qwen_image_is_another_family(copy: Path) -> None:
    from tests.draw import drawn_data

    assert recognize(drawn_data() / "qwen_image/image").family == "qwen_image"
    change(copy / "transformer/config.json", _class_name="QwenImageTransformer2DModel")
    with pytest.raises(ConfigError, match="QwenImageTransformer2DModel.*another architecture"):
        load(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 2), ("causal_condition", False), ("axes_dims_rope", [4, 4]), ("num_layers", 0), ("mlp_ratio", 0),
        ("zero_cond_t", True),
    ],
)  # fmt: skip
def test_other_transformers_are_refused_by_field(field: str, value: object, copy: Path) -> None:
    change(copy / "transformer/config.json", **{field: value})
    with pytest.raises(ConfigError, match=f"transformer/config.json.*'{field}'"):
        load(copy)


@pytest.mark.parametrize(("part", "field"), [("transformer", "context_in_dim"), ("transformer", "in_channels")])
def test_parts_of_different_models_are_told_apart(part: str, field: str, copy: Path) -> None:
    """The config and the tensors agree with each other, but not with the other parts."""
    config = read_json(copy / part / "config.json")
    tensors = mx.load(str(copy / part / WEIGHTS))
    name = {"context_in_dim": "txt_in.in_layer.weight", "in_channels": "img_in.weight"}[field]
    tensors[name] = mx.concatenate([tensors[name], tensors[name]], axis=1)
    if field == "context_in_dim":
        tensors["txt_in.text_norm.weight"] = mx.zeros(2 * config[field])
    mx.save_safetensors(str(copy / part / WEIGHTS), tensors)
    change(copy / part / "config.json", **{field: 2 * config[field]})
    with pytest.raises(ConfigError, match=f"'{field}' is {2 * config[field]}.*different models"):
        load(copy)


@pytest.mark.parametrize("sigmas", [["much"], [1.0, 0.0], [2.0]])
def test_sigmas_that_are_none_are_refused(sigmas: list[Any], copy: Path) -> None:
    change(copy / "model_index.json", sample_sigmas=sigmas)
    with pytest.raises(ConfigError, match=r"model_index.json: 'sample_sigmas'"):
        load(copy)


@pytest.mark.parametrize(("field", "value"), [("patch_size", 14), ("merge_size", 4), ("temporal_patch_size", 1)])
def test_pictures_prepared_for_another_tower_are_refused_by_field(field: str, value: int, copy: Path) -> None:
    change(copy / "processor/preprocessor_config.json", **{field: value})
    with pytest.raises(ConfigError, match=f"processor: the image processor's '{field}' is {value}"):
        load(copy)


def test_a_newer_processor_file_says_the_same(copy: Path) -> None:
    path = copy / "processor/preprocessor_config.json"
    (copy / "processor/processor_config.json").write_text(json.dumps({"image_processor": read_json(path)}))
    path.unlink()
    assert open_pipeline(copy).family.files.patches == open_pipeline(MODEL).family.files.patches  # type: ignore[attr-defined]
    (copy / "processor/processor_config.json").unlink()
    with pytest.raises(MissingFileError, match=r"processor/preprocessor_config.json is not there"):
        load(copy)


def test_a_lost_a_foreign_and_a_misshapen_tensor_are_named_together(copy: Path) -> None:
    tensors = mx.load(str(copy / "transformer" / WEIGHTS))
    del tensors["modulation.1.weight"]
    tensors |= {"foreign.weight": mx.zeros(3), "img_in.weight": mx.zeros((3, 3))}
    mx.save_safetensors(str(copy / "transformer" / WEIGHTS), tensors)
    with pytest.raises(
        MismatchError, match=r"missing: modulation.1.weight; 1 unexpected: foreign.weight; 1 missh.*img_in"
    ):
        load(copy)


def test_a_damaged_vision_tower_is_told_when_references_are_given(copy: Path) -> None:
    path = copy / "text_encoder/model.safetensors"
    tensors = mx.load(str(path))
    del tensors["model.visual.merger.norm.weight"]
    mx.save_safetensors(str(path), tensors)
    assert open_pipeline(copy).generate("a fox", **SMALL).image.size == (32, 32)
    with pytest.raises(MismatchError, match=r"missing: model.visual.merger.norm.weight"):
        open_pipeline(copy).generate("a fox", references=[copy / "picture1.png"], **SMALL)


# ComfyUI's single file


def to_single_file(folder: Path, prefix: str = "") -> Path:
    """The transformer as ComfyUI has it: one file, the MLP's two inputs in one weight."""
    tensors = mx.load(str(folder / "transformer" / WEIGHTS))
    shutil.rmtree(folder / "transformer")
    for name in [name for name in tensors if ".gate_layer." in name]:
        parts = [tensors.pop(name), tensors.pop(name.replace("gate_layer", "proj"))]
        tensors[name.replace("gate_layer", "gate_up")] = mx.concatenate(parts)
    path = folder / "qwen_image_2.1_bf16.safetensors"
    mx.save_safetensors(str(path), {prefix + name: tensor for name, tensor in tensors.items()})
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_comfyui_s_single_file_draws_the_same_picture(prefix: str, copy: Path) -> None:
    expected = load(copy).generate("a fox", **SMALL).image
    to_single_file(copy, prefix)
    assert load(copy).generate("a fox", **SMALL).image.tobytes() == expected.tobytes()


def test_another_single_file_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "transformer")
    with pytest.raises(MissingFileError, match=r"transformer/config.json is not there, and neither is a qwen_image_2"):
        load(copy)
    mx.save_safetensors(str(copy / "qwen_image_2.1_vae_bf16.safetensors"), {"x": mx.zeros(3)})
    with pytest.raises(MissingFileError):
        load(copy)
    mx.save_safetensors(str(copy / "qwen_image_2.1_bf16.safetensors"), {"x": mx.zeros(3)})
    with pytest.raises(CheckpointError, match="it has no 'img_in.weight'"):
        load(copy)


def test_rows_of_the_fused_weight_are_the_gate_s_first() -> None:
    gate, proj = from_single_file("model.diffusion_model.transformer_blocks.3.img_mlp.gate_up.weight")
    assert (gate.name, gate.start, gate.of) == ("transformer_blocks.3.img_mlp.gate_layer.weight", 0, 2)
    assert (proj.name, proj.start, proj.of) == ("transformer_blocks.3.img_mlp.proj.weight", 1, 2)
