"""LoRAs for Qwen-Image-2.1: the formats of the field, and which of the two Qwen-Images a file is for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import LoraError
from mlx_imagegen.lora.file import open_lora
from tests.conftest import Ran
from tests.draw import drawn_data
from tests.families.qwen_image_21.test_qwen_image_21 import MODEL
from tests.lora.test_command import write

SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32}
LORA, OLDER = MODEL / "lora.safetensors", drawn_data() / "qwen_image/image"


def weight(pipeline: Any, path: str) -> np.ndarray:
    return np.array(dict(pipeline.family.components["transformer"].load().named_modules())[path].weight)


def respelt(target: Path, spell: Callable[[str, str], str]) -> Path:
    """The LoRA with other keys: `spell` has the module and the part, A or B."""
    out = {}
    for key, value in load_file(LORA).items():
        module, _, part = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".lora_")
        out[spell(module, part)] = value
    save_file(out, target)
    return target


SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "ai-toolkit": lambda module, part: f"diffusion_model.{module}.lora_{part}.weight",
    "DiffSynth": lambda module, part: f"{module}.lora_{part}.default.weight",
    "PEFT": lambda module, part: f"base_model.model.{module}.lora_{part}.weight",
    "musubi": lambda module, part: (
        f"lora_unet_{module.replace('.', '_')}.lora_{'down' if part == 'A' else 'up'}.weight"
    ),
    "lightx2v": lambda module, part: f"{module}.lora_{'down' if part == 'A' else 'up'}.weight",
}


@pytest.mark.parametrize("trainer", SPELLINGS)
def test_every_trainers_names_lead_to_the_same_weights(trainer: str, tmp_path: Path) -> None:
    path = "transformer_blocks.1.img_mlp.gate_layer"
    plain, given = load(MODEL), load(MODEL, lora=[LORA])
    other = load(MODEL, lora=[respelt(tmp_path / "lora.safetensors", SPELLINGS[trainer])])
    tensors = load_file(LORA)
    down, up = (tensors[f"transformer.{path}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    assert np.abs(weight(given, path) - (weight(plain, path) + up @ down)).max() < 1e-6
    assert np.array_equal(weight(other, path), weight(given, path))


def test_the_fused_layer_s_rows_go_to_the_gate_and_to_the_other_half(tmp_path: Path) -> None:
    """As LoRAs trained on ComfyUI's single file have it."""
    block, rank = "transformer_blocks.0.img_mlp", 2
    plain = load(MODEL)
    rows, columns = weight(plain, f"{block}.gate_layer").shape
    dice = np.random.default_rng(0)
    down, up = (dice.standard_normal(shape).astype(np.float32) for shape in ((rank, columns), (2 * rows, rank)))
    file = tmp_path / "fused.safetensors"
    save_file(
        {f"diffusion_model.{block}.gate_up.lora_A.weight": down, f"diffusion_model.{block}.gate_up.lora_B.weight": up},
        file,
    )
    merged = load(MODEL, lora=[file])
    for name, half in (("gate_layer", up[:rows]), ("proj", up[rows:])):
        difference = weight(merged, f"{block}.{name}") - weight(plain, f"{block}.{name}")
        np.testing.assert_allclose(difference, half @ down, atol=1e-5)


def test_a_lora_of_the_modulation_changes_the_tables(tmp_path: Path) -> None:
    shape = mx.load(str(MODEL / "transformer/diffusion_pytorch_model.safetensors"))["modulation.1.weight"].shape
    tensors = {"transformer.modulation.1.lora_A.weight": np.ones((1, shape[1]), np.float32)}
    tensors["transformer.modulation.1.lora_B.weight"] = np.full((shape[0], 1), 0.05, np.float32)
    save_file(tensors, tmp_path / "mod.safetensors")
    pipeline = load(MODEL)
    before = pipeline.generate("a fox", **SMALL).image.tobytes()
    pipeline.set_lora([tmp_path / "mod.safetensors"])
    assert pipeline.generate("a fox", **SMALL).image.tobytes() != before
    pipeline.set_lora([])
    assert pipeline.generate("a fox", **SMALL).image.tobytes() == before


def test_the_two_qwen_images_loras_are_told_apart() -> None:
    assert open_lora(LORA).family == "Qwen-Image-2.1"
    assert open_lora(OLDER / "lightning.safetensors").family == "Qwen-Image"
    with pytest.raises(LoraError, match="It looks like a LoRA for Qwen-Image-2.1"):
        load(OLDER, lora=[LORA])
    with pytest.raises(LoraError, match=r"It looks like a LoRA for Qwen-Image\."):
        load(MODEL, lora=[OLDER / "lightning.safetensors"])
    with pytest.raises(LoraError):  # a part of it would fit by its names
        load(MODEL, lora=[OLDER / "lightning.safetensors"], lora_partial=True)


@pytest.mark.parametrize(
    ("width", "block", "base", "model"),
    [
        (4096, 8, "Qwen-Image-2.1", "qwen-image-2.1"),
        (4096, 0, "FLUX.2 or Qwen-Image-2.1", "qwen-image-2.1"),
        (3072, 0, "FLUX.1, FLUX.2 or Qwen-Image", "flux-dev"),
    ],
)
def test_attention_alone_is_told_by_its_width(
    width: int,
    block: int,
    base: str,
    model: str,
    cli: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    module = f"transformer.transformer_blocks.{block}.attn.to_q"
    pair = {f"{module}.lora_A.weight": ("BF16", [1, width]), f"{module}.lora_B.weight": ("BF16", [width, 1])}
    said = json.loads(cli("lora", write(tmp_path / "style.safetensors", pair), "--json").out)
    assert (said["base"], said["matches"]) == (base, f"1 of 1 modules of {model}")


def test_a_files_own_words_tell_the_version(tmp_path: Path) -> None:
    tensors = {"transformer_blocks.0.attn.to_q.lora_A.weight": np.zeros((1, 8), np.float32)}
    for said, family in (("Qwen-Image-2.1/lora", "Qwen-Image-2.1"), ("qwen-image/lora", "Qwen-Image")):
        save_file(tensors, tmp_path / "x.safetensors", {"modelspec.architecture": said})
        assert open_lora(tmp_path / "x.safetensors").family == family
