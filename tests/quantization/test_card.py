"""What `quantize` says of what is there already, and what a written folder says of itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_imagegen.errors import RequestError
from mlx_imagegen.quantization.card import card
from mlx_imagegen.quantization.partial import JOURNAL, partial_path
from mlx_imagegen.quantization.quantizer import quantize

RECORD: dict[str, Any] = {
    "manifest": "flux-dev", "source": "black-forest-labs/FLUX.1-dev", "revision": "abc", "recipe": "q4",
    "licence": "FLUX.1-dev Non-Commercial License", "bits_per_weight": {"transformer": 4.5}, "tool": "mlx-imagegen 1",
    "lora": [{"file": "/home/ann/style.safetensors", "scale": 0.5}],
}  # fmt: skip


def front_matter(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return loaded


def test_a_card_names_licence_base_model_and_recipe() -> None:
    text = card(RECORD)
    assert front_matter(text) | {"tags": 0} == {
        "license": "other", "license_name": "FLUX.1-dev Non-Commercial License",
        "base_model": "black-forest-labs/FLUX.1-dev", "base_model_relation": "quantized",
        "library_name": "mlx-imagegen", "pipeline_tag": "text-to-image", "tags": 0,
    }  # fmt: skip
    assert "# FLUX.1 [dev], q4" in text and "transformer 4.50 bits a weight" in text and "revision `abc`" in text
    assert "style.safetensors at 0.5" in text and "/home" not in text


def test_a_card_of_a_local_source_names_no_place() -> None:
    text = card(RECORD | {"source": "/home/ann/flux", "recipe": "/home/ann/my.toml", "licence": "Apache-2.0"})
    assert "/home" not in text and "a local folder or file" in text and "my.toml" in text
    assert front_matter(text)["license"] == "apache-2.0" and "base_model" not in front_matter(text)


def test_a_finished_folder_is_not_announced_again(flux_folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    asked = ("quantize", "--model", flux_folder, "--bits", 8, "-o", tmp_path / "made")
    first = cli(*asked)
    assert first.code == 0 and "to write" in first.err and "done in" in first.err
    again = cli(*asked)
    assert (again.code, again.out) == (0, f"{tmp_path / 'made'}\n")
    assert again.err == f"{tmp_path / 'made'} is complete already, made from the same files by the same recipe\n"
    assert "base_model" not in (tmp_path / "made" / "README.md").read_text()
    shown = cli("info", tmp_path / "made").out
    assert "manifest" in shown and "flux-schnell" in shown and "q8" in shown and "Apache-2.0" in shown
    plain = cli("info", flux_folder)
    assert plain.code == 0 and "FLUX.1" in plain.out


def test_another_recipe_s_partial_is_named_before_it_is_removed(flux_folder: Path, tmp_path: Path) -> None:
    left = partial_path(tmp_path / "made")
    left.mkdir()
    (left / JOURNAL).write_text("another identity\n")
    (left / "half").write_bytes(b"1" * 20_000_000)
    said: list[str] = []
    quantize(flux_folder, tmp_path / "made", bits=8, on_download=said.append)
    assert f"note: {left} (0.02 GB) is of another conversion, and is removed" in said
    assert not left.exists()


def test_bits_name_a_recipe(flux_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quant 'q4' and bits 4 both name a recipe"):
        quantize(flux_folder, tmp_path / "made", quant="q4", bits=4)
