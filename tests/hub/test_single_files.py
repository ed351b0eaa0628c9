"""Models from single files: recognized by tensors, put together with what goes with them, drawing the same picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from mlx_imagegen import load
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.loading.blocks import BLOCK_FORMATS
from tests.comfy_files import cache_tokenizers, comfy_flux, draw_flux, flux_files, gguf_flux

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
