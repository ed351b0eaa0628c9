"""Models from single files: recognized by tensors, put together with what goes with them, drawing the same picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.errors import CheckpointError, ConfigError, ImagegenError, MismatchError, MissingFileError
from mlx_imagegen.families.flux1.keys import from_original
from mlx_imagegen.families.flux2.keys import LAYOUT as FLUX2
from mlx_imagegen.families.flux3.keys import LAYOUT as FLUX3
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.hub.single_files import assemble, components_in
from mlx_imagegen.loading.blocks import BLOCK_FORMATS
from mlx_imagegen.loading.name_table import NameTable
from tests.comfy_files import (
    cache_tokenizers,
    comfy_flux,
    draw_flux,
    flux_files,
    fused,
    gguf_flux,
    published_names,
    read_tensors,
    save_with_config,
    to_folder,
)
from tests.draw import drawn_data
from tests.gguf_files import dequantized, encode, write_gguf

OPTIONS = {"seed": 3, "steps": 2, "width": 32, "height": 48, "guidance": 2.0, "max_sequence_length": 32}
PROMPT = "a red fox"


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("flux") / "diffusers")


@pytest.fixture(scope="module")
def expected(flux: Path) -> np.ndarray:
    """The picture of the diffusers folder."""
    return np.array(load(flux).generate(PROMPT, **OPTIONS).image, np.int16)


@pytest.fixture(autouse=True)
def tokenizers(tmp_path: Path, flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_tokenizers(tmp_path / "hub", flux, "flux-dev", monkeypatch)


def picture(model: str | Path, **options: object) -> np.ndarray:
    return np.array(load(model, **options).generate(PROMPT, **OPTIONS).image, np.int16)  # type: ignore[arg-type]


def test_split_files_give_the_picture_of_the_folder(tmp_path: Path, flux: Path, expected: np.ndarray) -> None:
    """What goes with the diffusion model is found in the ComfyUI folder that its file is in."""
    file = comfy_flux(tmp_path / "ComfyUI/models", flux)
    assert find(str(file)).manifest.name == "flux-dev"
    np.testing.assert_array_equal(picture(file), expected)


def test_all_in_one(tmp_path: Path, flux: Path, expected: np.ndarray) -> None:
    """ComfyUI's checkpoints: every component under a prefix of its own, and numbers that nobody reads."""
    prefixes = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    tensors = {
        prefixes[component] + name: np.ascontiguousarray(value)
        for component, files in flux_files(flux).items()
        for name, value in files.items()
    }
    tensors |= {"text_encoders.clip_l.logit_scale": np.array(4.6, np.float32)}
    path = tmp_path / "flux1-dev.safetensors"
    save_file(tensors, path)
    configs = {name: json.loads((flux / name / "config.json").read_text()) for name in prefixes}
    path.with_suffix(".json").write_text(json.dumps(configs))
    np.testing.assert_array_equal(picture(path), expected)


KINDS = [Kind(number) for number in BLOCK_FORMATS] + [Kind.F16, Kind.BF16]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_gives_the_picture_of_its_dequantized_weights(tmp_path: Path, flux: Path, kind: Kind) -> None:
    file, numbers = gguf_flux(tmp_path / "models", flux, kind)
    ours, theirs = picture(file), picture(numbers)
    assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 10


def test_int8_with_a_scale_a_row_gives_the_picture_of_its_numbers(tmp_path: Path, flux: Path) -> None:
    """ComfyUI's int8 files, described layer by layer."""
    files, numbers = {}, {}
    said = np.frombuffer(json.dumps({"format": "int8_tensorwise"}).encode(), np.uint8)
    for name, value in flux_files(flux)["transformer"].items():
        numbers[name] = files[name] = value
        if value.ndim == 2:
            scale = np.abs(value).max(axis=1, keepdims=True) / np.float32(127)
            files[name] = np.rint(value / scale).astype(np.int8)
            files |= {name + "_scale": scale, name.replace("weight", "comfy_quant"): said}
            numbers[name] = files[name] * scale
    folder = tmp_path / "numbers"
    shutil.copytree(flux, folder)
    save_file(to_folder(numbers, from_original), folder / "transformer/diffusion_pytorch_model.safetensors")
    file = comfy_flux(tmp_path / "models", flux, lambda path, _, config: save_with_config(path, files, config))
    np.testing.assert_array_equal(picture(file), picture(folder))


def test_a_name_is_looked_up_in_the_folder_that_is_set(
    tmp_path: Path, flux: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = comfy_flux(tmp_path / "ComfyUI/models", flux)
    np.testing.assert_array_equal(picture("flux1-dev.safetensors", comfy=tmp_path / "ComfyUI"), expected)
    with pytest.raises(ImagegenError):
        find("flux1-dev.safetensors")  # the parameter was of that call alone
    monkeypatch.setenv("MLX_IMAGEGEN_COMFY", str(tmp_path / "ComfyUI/models"))
    assert find("flux1-dev").file == file and find("flux1-dev").requested_as == str(file)
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copyfile(file, moved)
    shutil.copyfile(file.with_suffix(".json"), moved.with_suffix(".json"))
    np.testing.assert_array_equal(picture(moved), expected)  # what goes with it is in the folder that is set


def test_a_lora_is_looked_up_there_too(tmp_path: Path, flux: Path) -> None:
    comfy_flux(tmp_path / "ComfyUI/models", flux)
    names = [f"transformer.transformer_blocks.0.attn.to_q.lora_{part}.weight" for part in "AB"]
    pair = {names[0]: np.ones((4, 256), np.float32), names[1]: np.ones((256, 4), np.float32)}
    lora = save_with_config(tmp_path / "ComfyUI/models/loras/styles/ink.safetensors", pair, flux / "vae/config.json")
    result = load("flux1-dev", comfy=tmp_path / "ComfyUI", lora=["ink"]).generate(PROMPT, **OPTIONS)
    assert str(lora) in str(result.record["lora"])


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"is not a folder of ComfyUI's models: it has none of diffusion_models"):
        load("flux1-dev", comfy=tmp_path)


@pytest.mark.parametrize("given", ["", "models"])
def test_a_folder_of_many_models_is_no_model(tmp_path: Path, given: str) -> None:
    (tmp_path / "models/diffusion_models").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a ComfyUI folder of many models; give the path of one of its files"):
        find(str(tmp_path / given))


def test_of_several_files_that_fit_the_one_with_most_bits_is_taken(tmp_path: Path, flux: Path) -> None:
    models = tmp_path / "models"
    file = comfy_flux(models, flux)
    encoder = models / "clip/t5xxl_fp16.safetensors"
    tensors = load_file(encoder)
    wide = {name: np.tile(value, 2) if value.shape[-1] == 40 else value for name, value in tensors.items()}
    config = json.loads(encoder.with_suffix(".json").read_text())
    save_with_config(models / "text_encoders/a_wide_t5.safetensors", wide, encoder.with_suffix(".json"))
    (models / "text_encoders/a_wide_t5.json").write_text(json.dumps(config | {"d_model": 80}))
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    save_with_config(models / "text_encoders/a_half_as_large.safetensors", half, encoder.with_suffix(".json"))
    (models / "text_encoders/broken.safetensors").write_bytes(b"no header")
    assert assemble(file).parts["text_encoder_2"].path == encoder


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path, flux: Path) -> None:
    file = comfy_flux(tmp_path / "models", flux)
    (tmp_path / "models/vae/ae.safetensors").unlink()
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(MissingFileError) as caught:
        find(str(file))
    assert "needs vae (AutoencoderKL in its original names), tokenizer, tokenizer_2" in str(caught.value)
    assert "`hf download unsloth/FLUX.1-schnell --include 'vae/*' 'tokenizer/*' 'tokenizer_2/*'`" in str(caught.value)


def test_parts_are_put_into_their_own_folders(tmp_path: Path, flux: Path) -> None:
    file = comfy_flux(tmp_path / "models", flux)
    for place in ("vae/ae.safetensors", "clip/t5xxl_fp16.safetensors", "text_encoders/clip_l.safetensors"):
        (tmp_path / "models" / place).unlink()
    with pytest.raises(MissingFileError) as caught:
        find(str(file))
    models = tmp_path / "models"
    places = f"text_encoder and text_encoder_2 into {models}/text_encoders and vae into {models}/vae"
    assert f"put files of {places}, or run" in str(caught.value)


def test_a_parts_name_in_the_folder_that_is_set_is_refused_as_a_part(tmp_path: Path, flux: Path) -> None:
    comfy_flux(tmp_path / "models", flux)
    with pytest.raises(ConfigError, match=r"ae.safetensors is AutoencoderKL in its original names, a part of FLUX.1"):
        load("ae", comfy=tmp_path / "models")


def test_a_part_is_not_taken_for_a_model(tmp_path: Path, flux: Path) -> None:
    comfy_flux(tmp_path / "models", flux)
    with pytest.raises(
        ConfigError, match=r"clip_l.safetensors is CLIP-L, a part of FLUX.1; give the diffusion model's"
    ):
        find(str(tmp_path / "models/text_encoders/clip_l.safetensors"))


def test_tensors_of_no_component_are_refused(tmp_path: Path, flux: Path) -> None:
    tensors = {f"model.diffusion_model.{name}": value for name, value in flux_files(flux)["transformer"].items()}
    path = save_with_config(
        tmp_path / "a.safetensors", tensors | {"ema.decay": np.zeros(1, np.float32)}, flux / "vae/config.json"
    )
    with pytest.raises(CheckpointError, match=r"1 tensors belong to no part of the model \(ema.decay\)"):
        find(str(path))


def test_a_tensor_too_much_in_a_component_is_refused(tmp_path: Path, flux: Path) -> None:
    more = {"double_blocks.0.img_attn.more.weight": np.zeros((2, 2), np.float32)}
    file = comfy_flux(
        tmp_path / "models", flux, lambda path, tensors, config: save_with_config(path, tensors | more, config)
    )
    with pytest.raises(MismatchError, match=rf"^{file}: .* 1 unexpected: double_blocks.0.img_attn.more.weight"):
        load(file)


def test_flux_tools_are_told_by_width_and_name(tmp_path: Path, flux: Path) -> None:
    """Fill and the control models have wider inputs; Kontext's tensors are dev's."""
    tensors, config = flux_files(flux)["transformer"], flux / "transformer/config.json"
    rows, columns = tensors["img_in.weight"].shape
    for name, width in (("kontext", columns), ("fill", 6 * columns), ("depth", 2 * columns)):
        wide = tensors | {"img_in.weight": np.zeros((rows, width), np.float32)}
        file = save_with_config(tmp_path / f"flux1-dev-{name}.safetensors", wide, config)
        (found,) = components_in(file)
        assert found.nearest_manifest().name == f"flux-{name}-dev"


def test_other_models_are_named(tmp_path: Path) -> None:
    save_file({"down.0.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"is not recognized: its tensors \(down.0.weight\) are those of no model"):
        find(str(tmp_path / "other.safetensors"))


def test_a_model_of_one_component_is_its_file_and_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HiDream-O1: nothing goes with it, and its repository has the tokenizer at its root."""
    bundled = find("hidream-demo").folder
    assert bundled is not None
    file = tmp_path / "checkpoints/hidream_o1_image_dev.safetensors"
    file.parent.mkdir()
    shutil.copyfile(bundled / "model.safetensors", file)
    shutil.copyfile(bundled / "config.json", file.with_suffix(".json"))
    hub = tmp_path / "hub_of_hidream"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with pytest.raises(
        MissingFileError, match=r"needs tokenizer: .* --include 'tokenizer\*' 'vocab.json' 'merges.txt'"
    ):
        find(str(file))
    manifest = manifests()["hidream-o1-dev"]
    snapshot = hub / f"models--{str(manifest.repo).replace('/', '--')}/snapshots/{manifest.revision}"
    snapshot.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (bundled / name).is_file():
            shutil.copyfile(bundled / name, snapshot / name)
    assert find(str(file)).manifest.name == "hidream-o1-dev"
    shutil.copytree(bundled, tmp_path / "hidream-o1-dev")  # recognized as the same variant, by its name
    options: dict[str, Any] = {"seed": 1, "steps": 2, "width": 64, "height": 64}
    models = (file, tmp_path / "hidream-o1-dev")
    ours, theirs = (np.array(load(each).generate("a red circle", **options).image) for each in models)
    np.testing.assert_array_equal(ours, theirs)


def test_qwen_image_with_a_text_encoder_in_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's names and no vision tower; the table of words is read by rows from its blocks."""
    stored = drawn_data() / "qwen_image/image"
    cache_tokenizers(tmp_path / "qwen_hub", stored, "qwen-image", monkeypatch)
    models, numbers = tmp_path / "models", tmp_path / "numbers"
    shutil.copytree(stored, numbers)
    for component, place in {"transformer": "diffusion_models/qwen_image_bf16", "vae": "vae/qwen_image_vae"}.items():
        path = models / f"{place}.safetensors"
        save_with_config(path, read_tensors(stored / component), stored / component / "config.json")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 2)
    packed, plain = {}, {}
    for name, value in read_tensors(stored / "text_encoder").items():
        plain[name] = value
        if "visual." not in name:
            theirs = table.get_name(name.replace("model.language_model.", "model."), try_suffixes=(".weight", ".bias"))
            drawn = encode(value, Kind.Q8_0 if value.ndim == 2 and value.shape[1] % 32 == 0 else Kind.F32)
            packed[str(theirs)], plain[name] = drawn, dequantized(drawn)
    assert {kind for _, kind in packed.values()} == {Kind.Q8_0, Kind.F32} and packed["token_embd.weight"][
        1
    ] is Kind.Q8_0
    encoder = write_gguf(models / "text_encoders/qwen_2.5_vl.gguf", packed, arch="qwen2vl")
    shutil.copyfile(stored / "text_encoder/config.json", encoder.with_suffix(".json"))
    (path,) = (numbers / "text_encoder").glob("*.safetensors")
    save_file(plain, path)
    options: dict[str, Any] = {"seed": 1, "steps": 2, "width": 32, "height": 32, "guidance": 2.0}
    both = (models / "diffusion_models/qwen_image_bf16.safetensors", numbers)
    ours, theirs_ = (np.array(load(each).generate("a red fox", **options).image, np.int16) for each in both)
    assert np.abs(ours - theirs_).max() <= 1 and theirs_.std() > 5


@pytest.mark.parametrize(
    ("model", "names", "encoder", "layout"),
    [
        ("flux2/klein", "FLUX.2-klein-4B", "qwen_3_4b", FLUX2),
        ("flux2/dev", "FLUX.2-dev", "mistral_3_small", FLUX2),
        ("flux3/klein", "FLUX.3-klein", "qwen3vl_4b", FLUX3),
    ],
)
def test_flux_2_and_3(
    model: str, names: str, encoder: str, layout: NameTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's names, with the autoencoder's too; the tokenizer is the hub's."""
    stored, models = drawn_data() / model, tmp_path / "models"
    family, _, kind = model.partition("/")
    manifest = f"{family}-klein-base-4b" if model == "flux2/klein" else f"{family}-{kind}"
    known = manifests()[manifest]
    place = "text_encoder" if family == "flux3" else "tokenizer"
    snapshot = tmp_path / f"hub/models--{str(known.repo).replace('/', '--')}/snapshots/{known.revision}"
    shutil.copytree(stored / place, snapshot / place, ignore=shutil.ignore_patterns("model.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    places = [f"{place}.{level}" for place in ("encoder.down", "decoder.up") for level in range(4)]
    wider = [f"{place}.block.0.nin_shortcut.{kind}" for place in places for kind in ("weight", "bias")]
    names_of_vae = {*published_names("FLUX.2-klein-4B/bfl_single_file_ae.json"), *wider}  # other levels widen here
    vae = fused(read_tensors(stored / "vae"), sorted(names_of_vae), from_ldm)
    attention = {name for name in vae if "attn_1" in name and vae[name].ndim == 2}
    transformer = fused(
        read_tensors(stored / "transformer"), published_names(f"{names}/bfl_single_file.json"), layout.rename
    )
    text = read_tensors(stored / "text_encoder")
    if kind == "dev":  # ComfyUI's file is the language model alone
        inner = "language_model."
        text = {name.removeprefix(inner): value for name, value in text.items() if name.startswith(inner)}
    files = {
        f"text_encoders/{encoder}": (text, "text_encoder"),
        "vae/flux2-vae": ({name: v[:, :, None, None] if name in attention else v for name, v in vae.items()}, "vae"),
        f"diffusion_models/{known.name}": (transformer, "transformer"),
    }
    for file, (tensors, component) in files.items():
        path = save_with_config(models / f"{file}.safetensors", tensors, stored / component / "config.json")
    options: dict[str, Any] = {"seed": 1, "steps": 2, "width": 32, "height": 32, "max_sequence_length": 96}
    theirs, ours = (np.asarray(load(each).generate("a fox", **options).image) for each in (stored, path))
    assert find(str(path)).manifest.name == manifest and theirs.std() > 4
    np.testing.assert_array_equal(ours, theirs)
