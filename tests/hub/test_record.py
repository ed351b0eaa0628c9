"""The command that makes a folder again names the model so that its own LoRA and schedule come with it."""

import shlex
from typing import Any

import pytest

from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.hub.record import remake

OWN = {"file": "own.safetensors", "scale": 1.0}
STYLE = {"file": "/a b/style.safetensors", "scale": 0.7}


def words(record: dict[str, Any], **changes: Any) -> list[str]:
    return shlex.split(remake(record, **changes))


@pytest.mark.parametrize(
    ("manifest", "source", "model", "named"),
    [
        ("qwen-image-lightning", manifests()["qwen-image-lightning"].repo, "qwen-image-lightning", [STYLE]),
        ("qwen-image", manifests()["qwen-image"].repo, "qwen-image", [OWN, STYLE]),
        ("qwen-image", "/my/folder", "/my/folder", [OWN, STYLE]),
        ("flux-demo", str((data_folder("weights") / "demo/flux").resolve()), "flux-demo", [OWN, STYLE]),
        ("gone", "someone/else", "someone/else", [OWN, STYLE]),
    ],
)
def test_the_model_and_its_loras(manifest: str, source: str, model: str, named: list[dict[str, Any]]) -> None:
    record = {"manifest": manifest, "source": source, "recipe": "q4", "lora": [OWN, STYLE]}
    loras = [word for lora in named for word in ("--lora", f"{lora['file']}:{lora['scale']:g}")]
    expected = ["mlx-imagegen", "quantize", "--model", model, "--quant", "q4", *loras, "-o", "FOLDER"]
    assert words(record) == expected
    assert words(record, loras=[STYLE])[-4:] == ["--lora", "/a b/style.safetensors:0.7", "-o", "FOLDER"]


def test_what_was_merged_in_part_is_allowed_again() -> None:
    record = {"source": "/m", "recipe": "q6", "lora": [STYLE]}
    assert "--lora-partial" not in words(record, loras=[OWN])
    assert "--lora-partial" in words(record, loras=[OWN], lora_partial=True)
    assert "--lora-partial" in words(record | {"lora_partial": True})


def test_what_was_folded_is_folded_again() -> None:
    record = {"source": "/m", "recipe": "q6", "folded": {"steps": 8, "size": [64, 32]}}
    assert words(record)[6:10] == ["--fold", "8", "--fold-size", "64x32"]
    assert words(record, fold=4)[6:9] == ["--fold", "4", "-o"]
    assert words(record, fold=4, fold_size=(16, 48))[6:10] == ["--fold", "4", "--fold-size", "16x48"]


def test_what_was_calibrated_is_calibrated_again() -> None:
    record = {"source": "/m", "recipe": "q4", "calibrated_with": [{"prompt": "a cat"}], "lora": [STYLE]}
    assert words(record)[6:9] == ["--calibrate", "FILE", "--lora"]


def test_without_a_record_the_model_is_left_open() -> None:
    assert words({})[:6] == ["mlx-imagegen", "quantize", "--model", "MODEL", "--quant", "q6"]
