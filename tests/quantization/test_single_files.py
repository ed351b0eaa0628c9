"""`quantize`, --quant and LoRAs on single files: GGUF's codes are kept where MLX holds them, all else is as from a
diffusers folder of the same numbers."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from mlx_imagegen import load, quantize
from mlx_imagegen.quantization.conversion_plan import plan_conversion
from tests.comfy_files import cache_tokenizers, comfy_flux, draw_flux, gguf_flux

OPTIONS = {"seed": 3, "steps": 2, "width": 32, "height": 48, "guidance": 2.0, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("flux") / "diffusers")


@pytest.fixture(autouse=True)
def tokenizers(tmp_path: Path, flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_tokenizers(tmp_path / "hub", flux, "flux-dev", monkeypatch)


def picture(model: Path, **options: object) -> np.ndarray:
    notes: list[str] = []
    pipeline = load(model, on_download=notes.append, **options)  # type: ignore[arg-type]
    return np.array(pipeline.generate("a red fox", **OPTIONS).image, np.int16)


def packed_tensors(folder: Path) -> dict[str, mx.array]:
    (path,) = (folder / "transformer").glob("*.safetensors")
    return dict(mx.load(str(path)))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_codes_that_mlx_holds_are_kept_in_the_copy(tmp_path: Path, flux: Path, kind: Kind) -> None:
    file, numbers = gguf_flux(tmp_path / "models", flux, kind)
    out = quantize(file, tmp_path / "out", quant="q8", on_download=lambda _: None)
    config = json.loads((out / "transformer/config.json").read_text())
    bits = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q8_0: 8}.get(kind, 5)
    path = "transformer_blocks.0.attn.to_k"
    assert config["quantization"][path] == {"bits": bits, "group_size": 32, "mode": "affine"}
    tensors = packed_tensors(out)
    parts = [tensors[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
    values = mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]), group_size=32, bits=bits)
    dense = dict(mx.load(str(next((numbers / "transformer").glob("*.safetensors")))))
    np.testing.assert_array_equal(np.array(values), np.array(dense[f"{path}.weight"]))
    assert picture(out).std() > 10  # it loads alone


def test_what_has_no_packed_form_is_packed_by_the_recipe(tmp_path: Path, flux: Path) -> None:
    """As from a folder of the same numbers: bit for bit."""
    file, numbers = gguf_flux(tmp_path / "models", flux, Kind.Q6_K)
    from_file = packed_tensors(quantize(file, tmp_path / "a", quant="q8", on_download=lambda _: None))
    from_folder = packed_tensors(quantize(numbers, tmp_path / "b", quant="q8"))
    assert from_file.keys() == from_folder.keys()
    packed = [name for name in from_folder if name.endswith(".scales")]
    assert packed and all(mx.array_equal(from_file[name], from_folder[name]) for name in from_folder)


def test_the_plan_says_what_is_kept_and_what_is_unpacked(tmp_path: Path, flux: Path) -> None:
    file, _ = gguf_flux(tmp_path / "models", flux, Kind.Q4_K)
    (line,) = (note for note in plan_conversion(file).notes if "Q4_K" in note)
    assert line.startswith("transformer: weights stay packed as the file has them, without rounding again: ")
    file, _ = gguf_flux(tmp_path / "more", flux, Kind.Q3_K)
    (line,) = (note for note in plan_conversion(file).notes if "Q3_K" in note)
    assert line.startswith("transformer: weights are unpacked, and packed as the recipe says: ")


def test_split_files_are_quantized_as_their_folder_is(tmp_path: Path, flux: Path) -> None:
    file = comfy_flux(tmp_path / "models", flux)
    out = quantize(file, tmp_path / "a", quant="q8", on_download=lambda _: None)
    assert json.loads((out / "mlx_imagegen.json").read_text())["source"] == str(file.resolve())
    np.testing.assert_array_equal(picture(out), picture(quantize(flux, tmp_path / "b", quant="q8")))


def test_loading_says_what_is_unpacked(tmp_path: Path, flux: Path) -> None:
    notes: list[str] = []
    load(gguf_flux(tmp_path / "models", flux, Kind.Q6_K)[0], on_download=notes.append)
    (note,) = notes
    assert note.startswith("note: transformer: weights are unpacked, for MLX has no packing for their format (")
    assert note.endswith("in Q6_K); a recipe (quant, --quant q6) packs them while they are loaded")
    load(gguf_flux(tmp_path / "more", flux, Kind.Q4_0)[0], on_download=notes.append)
    assert len(notes) == 1  # nothing is unpacked there


def test_a_recipe_while_loading_packs_what_the_file_has_not(tmp_path: Path, flux: Path) -> None:
    file, numbers = gguf_flux(tmp_path / "models", flux, Kind.Q2_K)
    np.testing.assert_array_equal(picture(file, quant="q8"), picture(numbers, quant="q8"))
    file, numbers = gguf_flux(tmp_path / "more", flux, Kind.Q8_0)
    assert np.abs(picture(file, quant="q8") - picture(numbers)).max() <= 3  # the text encoders are packed


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q6_K], ids=lambda kind: kind.name)
def test_a_lora_changes_the_files_numbers(tmp_path: Path, flux: Path, kind: Kind) -> None:
    """Changed layers are packed at 8 bits: at the file's own 4 the change would be lost."""
    file, numbers = gguf_flux(tmp_path / "models", flux, kind)
    dice, blocks = np.random.default_rng(1), "transformer.single_transformer_blocks.1.proj_out.lora"
    lora = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": dice.normal(0, 0.3, (4, 256)).astype(np.float32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": dice.normal(0, 0.3, (256, 4)).astype(np.float32),
        f"{blocks}_A.weight": dice.normal(0, 0.3, (4, 1280)).astype(np.float32),
        f"{blocks}_B.weight": dice.normal(0, 0.3, (256, 4)).astype(np.float32),
    }  # fmt: skip
    save_file(lora, tmp_path / "lora.safetensors")
    wanted = [tmp_path / "lora.safetensors"]
    plain, ours, theirs = picture(numbers), picture(file, lora=wanted), picture(numbers, lora=wanted)
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(plain - theirs).mean()
    made = quantize(file, tmp_path / "out", quant="q8", lora=wanted, on_download=lambda _: None)
    other = quantize(numbers, tmp_path / "other", quant="q8", lora=wanted, on_download=lambda _: None)
    np.testing.assert_array_equal(picture(made), picture(other))
