"""Published single files at full size, by their names and shapes alone: every tensor binds, and the shapes give back
the published config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import MODEL_ARCH

from mlx_imagegen.errors import MissingFileError
from mlx_imagegen.families import open_family
from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.hub.single_files import _manifests_with_parts_for, assemble, known_components
from mlx_imagegen.hub.tensor_shapes import each_name
from mlx_imagegen.loading.single_file import renamed, substitute
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.text.layouts import GGUF_DECODER, GGUF_T5
from tests.comfy_files import NAMES, cache_tokenizers
from tests.draw import drawn_data
from tests.families.qwen_image_21.test_files import WAN

FILES = {
    "diffusion_models/flux1-dev": "FLUX.1-dev/bfl_single_file_flux1-dev",
    "diffusion_models/flux1-schnell": "FLUX.1-schnell/bfl_single_file_flux1-schnell",
    "vae/ae": "FLUX.1-dev/bfl_single_file_ae",
    "text_encoders/clip_l": "FLUX.1-dev/text_encoder",
    "text_encoders/t5xxl_fp16": "FLUX.1-dev/text_encoder_2",
    "diffusion_models/qwen_image_bf16": "Qwen-Image/transformer",
    "diffusion_models/qwen_image_edit_2511_bf16": "Qwen-Image-Edit-2511/transformer",
    "text_encoders/qwen_2.5_vl_7b": "Qwen-Image/text_encoder",
    "vae/qwen_image_vae": "Qwen-Image/vae",
    "diffusion_models/z_image_turbo_bf16": "z-image-turbo/transformer",
    "text_encoders/qwen_3_4b": "z-image-turbo/text_encoder",
    "diffusion_models/flux-2-klein-4b": "FLUX.2-klein-4B/bfl_single_file",
    "diffusion_models/flux-2-klein-base-4b": "FLUX.2-klein-4B/bfl_single_file",
    "diffusion_models/flux2-dev": "FLUX.2-dev/bfl_single_file",
    "diffusion_models/flux3-image-klein": "FLUX.3-klein/bfl_single_file",
    "text_encoders/mistral_3_small_flux2_bf16": "flux2-dev/text_encoder",
    "text_encoders/qwen3vl_4b": "flux3-klein/text_encoder",
    "vae/flux2-vae": "FLUX.2-klein-4B/bfl_single_file_ae",
    "diffusion_models/qwen_image_2.1_bf16": "qwen-image-2.1/transformer",
    "diffusion_models/qwen_image_2.1_turbo_bf16": "qwen-image-2.1/transformer",
    "text_encoders/qwen3vl_8b_bf16": "qwen-image-2.1/text_encoder",
    "vae/qwen_image_2.1_vae_bf16": "qwen-image-2.1/vae",
}


# Where the config that belongs to a list of names is.
CONFIGS = {
    "FLUX.2-klein-4B/bfl_single_file": "flux2-klein-4b/transformer",
    "FLUX.2-klein-4B/bfl_single_file_ae": "flux2-klein-4b/vae",
    "FLUX.2-dev/bfl_single_file": "flux2-dev/transformer",
    "FLUX.3-klein/bfl_single_file": "flux3-klein/transformer",
}
Z_IMAGE = (
    (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
    (r"\.attention\.to_q\.", ".attention.qkv."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
)


def published(place: str) -> dict[str, Any]:
    """Config and shapes: of tests/data/names, or of the shapes that come with a manifest."""
    if (path := NAMES / f"{place}.json").is_file():
        return dict(json.loads(path.read_text()))
    manifest, component = place.split("/")
    data = json.loads((data_folder("weights") / f"tensor_shapes/{manifest}.json").read_text())
    tensors = {name: shape for kinds in data["tensors"][component].values() for name, shape in kinds.items()}
    config = data["files"][f"{component}/config.json"]
    if manifest == "flux2-dev" and component == "text_encoder":
        tensors = as_mistral(tensors)
    if manifest == "qwen-image-2.1":
        tensors = {each: shape for name, shape in tensors.items() for each in each_name(name)}
        tensors = as_qwen_image_21(component, tensors)
    return {"config": config, "tensors": as_comfyui(tensors) if "z-image" in place and "trans" in place else tensors}


def as_mistral(tensors: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """ComfyUI's file: the language model alone, without its last ten layers, with the tokenizer in it."""
    inner = {name.removeprefix("language_model."): shape for name, shape in tensors.items() if "vision" not in name}
    kept = {name.replace("{0-39}", "{0-29}"): shape for name, shape in inner.items() if "projector" not in name}
    return {name: shape for name, shape in kept.items() if "lm_head" not in name} | {"tekken_model": [16]}


def as_qwen_image_21(component: str, tensors: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """ComfyUI's files: the MLP's inputs in one, the language model a level higher, Wan's names for the autoencoder."""
    out = {}
    for name, shape in tensors.items():
        if component == "vae":
            over_time = name.endswith(".weight") and ".resample." not in name and ".attentions." not in name
            out[substitute(name, WAN)] = [*shape[:2], 1, *shape[2:]] if over_time else shape
        elif ".gate_layer." not in name:
            is_half = ".img_mlp.proj." in name
            name = name.replace(".img_mlp.proj.", ".img_mlp.gate_up.").replace("model.language_model.", "model.")
            out[name] = [2 * shape[0], *shape[1:]] if is_half else shape
    return out


def as_comfyui(tensors: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Z-Image's names of diffusers in those of ComfyUI, with q, k and v in one."""
    out = {"norm_final.weight": [8]}  # whatever it is: no module reads it
    for name, shape in tensors.items():
        if ".attention.to_k." not in name and ".attention.to_v." not in name:
            rows = 3 * shape[0] if ".attention.to_q." in name else shape[0]
            out[substitute(name, Z_IMAGE)] = [rows, *shape[1:]]
    return out


def write_header(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """A safetensors file whose numbers are holes."""
    header, end = {}, 0
    for names, shape in shapes.items():
        for name in each_name(names):
            size = 2
            for axis in shape:
                size *= axis
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ComfyUI") / "models"
    for name, place in FILES.items():
        write_header(folder / f"{name}.safetensors", published(place)["tensors"])
    return folder


@pytest.mark.parametrize(
    ("name", "manifest", "place", "family"),
    [
        ("flux1-dev", "flux-dev", "FLUX.1-dev", "flux"),
        ("flux1-schnell", "flux-schnell", "FLUX.1-schnell", "flux"),
        ("qwen_image_bf16", "qwen-image", "Qwen-Image", "qwen"),
        ("qwen_image_edit_2511_bf16", "qwen-image-edit-2511", "Qwen-Image-Edit-2511", "qwen"),
        ("z_image_turbo_bf16", "z-image-turbo", "z-image-turbo", "qwen"),
        ("flux-2-klein-4b", "flux2-klein-4b", "flux2-klein-4b", "qwen"),
        ("flux-2-klein-base-4b", "flux2-klein-base-4b", "flux2-klein-4b", "qwen"),
        ("flux2-dev", "flux2-dev", "flux2-dev", "mistral"),
        ("flux3-image-klein", "flux3-klein", "flux3-klein", "qwen"),
        ("qwen_image_2.1_bf16", "qwen-image-2.1", "qwen-image-2.1", "qwen"),
        ("qwen_image_2.1_turbo_bf16", "qwen-image-2.1-turbo", "qwen-image-2.1", "qwen"),
    ],
)
def test_every_tensor_binds(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, manifest: str, place: str, family: str
) -> None:
    if family == "flux":
        cache_tokenizers(tmp_path, drawn_data() / "flux/dev", manifest, monkeypatch)
    elif family == "mistral":
        cache_tokenizers(tmp_path, drawn_data() / "flux2/dev", manifest, monkeypatch)
    else:  # Qwen's come with the package
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = find(str(models / f"diffusion_models/{name}.safetensors"))
    assert found.manifest.name == manifest and found.folder is not None
    opened = open_family(found.manifest, found.folder, WeightTransforms())
    assert {path.parents[1] for weights in opened.weights.values() for path in weights.checkpoint.paths} == {models}
    config = json.loads((found.folder / "transformer/config.json").read_text())
    assert {**published(f"{place}/transformer")["config"], **config} == config | {
        key: value for key, value in published(f"{place}/transformer")["config"].items() if key not in config
    }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of blocks as BLOCK.FIELD."""
    blocks = {name: value for name, value in config.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": value for name, block in blocks.items() for key, value in block.items()}
    return {name: value for name, value in config.items() if name not in blocks} | inner


@pytest.mark.parametrize("name", FILES)
def test_shapes_give_the_published_sizes(models: Path, name: str) -> None:
    (found, *_) = (component.found for component in known_components(models / f"{name}.safetensors"))
    place = FILES[name].replace("bfl_single_file_ae", "vae")
    place = CONFIGS.get(FILES[name], place)
    config = published(place.partition("bfl_single_file_")[0] + "transformer" if "bfl" in place else place)["config"]
    config = config | flat(config) | config.get("text_config", {})
    told = {key: value for key, value in flat(found.config).items() if key in config}
    assert told == {key: config[key] for key in told} and len(told) >= (1 if "text_config" in config else 2)


@pytest.mark.parametrize("tower", [True, False])
def test_qwen3_vl_in_comfyuis_names_is_told_from_qwen3_by_its_tower(tmp_path: Path, tower: bool) -> None:
    tensors = published("flux3-klein/text_encoder")["tensors"]
    names = {name: name.replace("model.language_model.", "model.") for name in tensors if tower or "visual" not in name}
    write_header(tmp_path / "qwen3vl_4b.safetensors", {ours: tensors[name] for name, ours in names.items()})
    known = {component.spec.name for component in known_components(tmp_path / "qwen3vl_4b.safetensors")}
    assert ("flux3" in known) is tower and ("flux2" in known) is not tower


@pytest.mark.parametrize(
    ("arch", "rules", "place", "layers"),
    [
        (MODEL_ARCH.T5ENCODER, GGUF_T5, "FLUX.1-dev/text_encoder_2", 24),
        (MODEL_ARCH.QWEN2VL, GGUF_DECODER, "Qwen-Image/text_encoder", 28),
        (MODEL_ARCH.QWEN3, GGUF_DECODER, "z-image-turbo/text_encoder", 36),
    ],
)
def test_llama_cpps_names_lead_back(arch: MODEL_ARCH, rules: Any, place: str, layers: int) -> None:
    """The `gguf` package's own table, from Hugging Face's names to llama.cpp's."""
    table, rename = gguf.get_tensor_name_map(arch, layers), renamed(*rules)
    names = [name for names in published(place)["tensors"] for name in each_name(names) if "visual" not in name]
    for name in names:
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        assert [target.name for target in rename(theirs)] == [name]


def test_parts_are_sought_where_they_fit(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.2's sizes have text encoders of their own: klein 4B's is not taken, nor named, for dev."""

    def sources(model: str) -> set[str]:
        return {each.name for each in _manifests_with_parts_for(manifests()[model])}

    assert sources("flux2-klein-base-4b") == {"flux2-klein-4b", "flux2-klein-base-4b"}
    assert sources("flux2-klein-9b") == {"flux2-klein-9b", "flux2-klein-9b-kv", "flux2-klein-base-9b"}
    assert sources("flux-dev") >= {"flux-dev", "flux-schnell"}
    assert all(name.startswith("flux-") for name in sources("flux-dev"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    alone = tmp_path / "flux2-dev.safetensors"
    alone.symlink_to(models / "diffusion_models/flux2-dev.safetensors")
    with pytest.raises(MissingFileError) as caught:
        find(str(alone))
    assert "needs text_encoder (Mistral Small 3), vae (AutoencoderKL in its original names), tokenizer" in str(
        caught.value
    )
    said = "run `hf download black-forest-labs/FLUX.2-dev --include 'text_encoder/*' 'vae/*'`, after its terms are"
    free = "and `hf download diffusers/FLUX.2-dev-bnb-4bit --include 'tokenizer/*'`, which asks for no access."
    assert said in str(caught.value) and str(caught.value).endswith(free)
    copied = tmp_path / "models--diffusers--FLUX.2-dev-bnb-4bit"
    for place, text in {"refs/main": "abc", "snapshots/abc/tokenizer/tokenizer.json": "{}"}.items():
        (copied / place).parent.mkdir(parents=True)
        (copied / place).write_text(text)
    assert assemble(alone).missing == ["text_encoder", "vae"], "that copy's tokenizer is taken"
