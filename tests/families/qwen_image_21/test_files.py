"""Qwen-Image-2.1's published files, name by name and shape by shape, and folders that are not as they should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, MismatchError, MissingFileError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.qwen_image_21.editing import Editing
from mlx_imagegen.families.qwen_image_21.family import QwenImage21
from mlx_imagegen.families.qwen_image_21.keys import from_single_file
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.single_files import components_in
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.single_file import substitute
from mlx_imagegen.loading.weights import WeightTransforms
from tests.comfy_files import Tensors, read_tensors, save_with_config, to_folder
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
        pytest.skip("the published lists do not lie next to this checkout")
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
    with pytest.raises(ConfigError, match=f"processor: field '{field}' is {value}"):
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


# Single files

WAN = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.(weight|bias)$", r".residual.2.\1"),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.down_blocks\.(\d+)\.downsampler\.", r".downsamples.\1.downsamples.1."),
    (r"\.up_blocks\.(\d+)\.upsampler\.", r".upsamples.\1.upsamples.2."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
    (r"coder\.conv_in\.", "coder.conv1."),
    (r"coder\.norm_out\.", "coder.head.0."),
    (r"coder\.conv_out\.", "coder.head.2."),
)
ENCODER_NAMES = {"repository": "model.language_model.", "ComfyUI": "model."}


def to_comfyui(component: str, tensors: Tensors, language: str = "ComfyUI") -> Tensors:
    """A component's tensors in the names of ComfyUI's file, the autoencoder's convolutions as Wan 2.2's: over time."""
    out = {}
    for name, value in tensors.items():
        if ".proj." in name and component == "transformer":
            gate = tensors[name.replace(".proj.", ".gate_layer.")]
            out[name.replace(".proj.", ".gate_up.")] = np.concatenate([gate, value])
        elif component == "vae":
            alone = not name.endswith(".weight") or ".resample." in name or ".attentions." in name
            out[substitute(name, WAN)] = value if alone else value[:, :, None]
        elif ".gate_layer." not in name:
            out[name.replace("model.language_model.", ENCODER_NAMES[language])] = value
    return out


def comfyui(models: Path, folder: Path, language: str = "ComfyUI", name: str = "qwen_image_2.1_bf16") -> Path:
    """ComfyUI's folder of a model; the diffusion model's file in it. Its tokenizer and image processor are small."""
    places = {
        "transformer": f"diffusion_models/{name}",
        "text_encoder": "text_encoders/qwen3vl_8b_bf16",
        "vae": "vae/qwen_image_2.1_vae_bf16",
    }
    for component, place in places.items():
        tensors = to_comfyui(component, read_tensors(folder / component), language)
        save_with_config(models / f"{place}.safetensors", tensors, folder / component / "config.json")
    return models / f"{places['transformer']}.safetensors"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's cache with the small model's tokenizer and image processor."""
    manifest = manifests()["qwen-image-2.1"]
    snapshots = tmp_path / "hub" / f"models--{str(manifest.repo).replace('/', '--')}" / "snapshots"
    shutil.copytree(MODEL / "processor", snapshots / str(manifest.revision) / "processor")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("language", ENCODER_NAMES)
def test_single_files_draw_the_folder_s_picture(language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Editing, "size", lambda *_: (96, 64))  # a megapixel takes seconds
    asked = SMALL | {"references": [MODEL / "picture1.png"]}
    expected = load(MODEL).generate("a fox", **asked).image
    file = comfyui(tmp_path / "ComfyUI/models", MODEL, language)
    pipeline = load(file)
    assert pipeline.model.manifest.name == "qwen-image-2.1"
    assert pipeline.generate("a fox", **asked).image.tobytes() == expected.tobytes()


@pytest.mark.usefixtures("cached")
def test_the_file_s_name_tells_turbo_whose_sigmas_are_not_shifted(tmp_path: Path) -> None:
    file = comfyui(tmp_path / "models", MODEL, name="qwen_image_2.1_turbo_bf16")
    pipeline = load(file)
    assert pipeline.model.manifest.name == "qwen-image-2.1-turbo"
    (job,) = pipeline.jobs("a fox", seed=1, width=64, height=32)
    sigmas = pipeline.family.schedule(job.settings).sigmas
    assert sigmas == pytest.approx([1, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0])


@pytest.mark.usefixtures("cached")
def test_int8_with_a_scale_a_row_draws_the_picture_of_its_numbers(tmp_path: Path) -> None:
    """A row's scale goes with it where the two inputs of the MLP are taken apart."""
    file, folder = comfyui(tmp_path / "models", MODEL), shutil.copytree(MODEL, tmp_path / "numbers")
    files, numbers = {}, {}
    said = np.frombuffer(json.dumps({"format": "int8_tensorwise"}).encode(), np.uint8)
    for name, value in load_file(file).items():
        numbers[name] = files[name] = value
        if value.ndim == 2:
            scale = np.abs(value).max(axis=1, keepdims=True) / np.float32(127)
            files[name] = np.rint(value / scale).astype(np.int8)
            files |= {f"{name}_scale": scale, name.replace("weight", "comfy_quant"): said}
            numbers[name] = files[name] * scale
    save_with_config(file, files, MODEL / "transformer/config.json")
    (path,) = (folder / "transformer").glob("*.safetensors")
    save_file(to_folder(numbers, from_single_file), path)
    expected = load(folder).generate("a fox", **SMALL).image
    assert load(file).generate("a fox", **SMALL).image.tobytes() == expected.tobytes()


@pytest.mark.usefixtures("cached")
def test_what_goes_with_the_file_is_named_where_it_is_not_there(tmp_path: Path) -> None:
    file = comfyui(tmp_path / "models", MODEL)
    (tmp_path / "models/vae/qwen_image_2.1_vae_bf16.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"vae \(Qwen-Image-2.1's autoencoder\).*Qwen/Qwen-Image-2.1"):
        load(file)


def test_a_language_model_without_its_tower_is_not_taken_for_one(tmp_path: Path) -> None:
    """Its names and sizes are those of Qwen3-8B, which draws other pictures."""
    tensors = to_comfyui("text_encoder", read_tensors(MODEL / "text_encoder"))
    alone = {name: value for name, value in tensors.items() if "visual" not in name}
    path = save_with_config(tmp_path / "qwen3.safetensors", alone, MODEL / "text_encoder/config.json")
    assert not [each for each in components_in(path) if each.spec.name == "qwen_image_21"]


def test_rows_of_the_fused_weight_are_the_gate_s_first() -> None:
    gate, proj = from_single_file("model.diffusion_model.transformer_blocks.3.img_mlp.gate_up.weight")
    assert (gate.name, gate.start, gate.of) == ("transformer_blocks.3.img_mlp.gate_layer.weight", 0, 2)
    assert (proj.name, proj.start, proj.of) == ("transformer_blocks.3.img_mlp.proj.weight", 1, 2)
