"""`info` and `models` on files of weights: all of it from headers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from mlx_imagegen.cli import main
from tests.comfy_files import cache_tokenizers, comfy_flux, draw_flux, flux_files, gguf_flux
from tests.draw import drawn_data


@pytest.fixture
def flux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = draw_flux(tmp_path / "diffusers")
    cache_tokenizers(tmp_path / "hub", folder, "flux-dev", monkeypatch)
    return folder


def info(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    assert main(["info", str(path), "--json", *more]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_gguf_model_is_described(tmp_path: Path, flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = gguf_flux(tmp_path / "models", flux, Kind.Q4_K)
    shown = info(file, capsys)
    assert (shown["format"], shown["family"], shown["component"]) == ("GGUF", ["FLUX.1"], ["transformer"])
    assert (shown["manifest"], shown["runs"]) == ("flux-dev", "yes")
    assert [line.split()[0] for line in shown["dtypes"]] == ["Q4_K", "F32"]  # type: ignore[attr-defined]
    assert shown["general.architecture"] == "flux"
    shutil.rmtree(tmp_path / "models/vae")
    assert "needs vae (AutoencoderKL" in str(info(file, capsys)["missing"])


def test_a_part_says_what_it_goes_with(tmp_path: Path, flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comfy_flux(tmp_path / "models", flux)
    shown = info(tmp_path / "models/vae/ae.safetensors", capsys)
    assert shown["component"] == ["vae"] and "FLUX.1" in str(shown["used_by"]) and "missing" not in shown


def test_what_is_no_model_is_described_too(tmp_path: Path, flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x.lora_A.weight": np.zeros((2, 2), np.float16)}, tmp_path / "lora.safetensors")
    shown = info(tmp_path / "lora.safetensors", capsys)
    assert shown["is"] == "a LoRA: see `mlx-imagegen lora FILE`" and shown["dtypes"] == ["F16 1 (0.00 GB)"]
    text = np.frombuffer(b'{"format": "convrot_w4a4"}', np.uint8)
    save_file({"x.weight": np.zeros((2, 2), np.int8), "x.comfy_quant": text}, tmp_path / "a.safetensors")
    assert "is in the format 'convrot_w4a4'" in str(info(tmp_path / "a.safetensors", capsys)["refused"])


def test_a_files_own_words_neither_hide_its_format_nor_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"format": "pt", "modelspec.title": "a\x1b[31m\nb"}
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "a.safetensors", words)
    assert main(["info", str(tmp_path / "a.safetensors")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["format"], lines["modelspec.title"]) == ("safetensors", r"a\x1b[31m\nb")


def test_weights_are_not_read(tmp_path: Path, flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of holes as large as the published one is described at once."""
    tensors = flux_files(flux)["transformer"]
    header, end = {}, 0
    for name, value in tensors.items():
        shape = [axis * 64 if "weight" in name and value.ndim == 2 and axis == 256 else axis for axis in value.shape]
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "flux.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 3 * 10**9
    assert info(tmp_path / "flux.safetensors", capsys)["manifest"] == "flux-dev"


def test_models_lists_the_files_of_comfyuis_folder(
    tmp_path: Path, flux: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_IMAGEGEN_COMFY", "")
    comfy_flux(tmp_path / "ComfyUI/models", flux)
    (tmp_path / "ComfyUI/models/checkpoints").mkdir()
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "ComfyUI/models/checkpoints/other.safetensors")
    assert main(["models", "--comfy", str(tmp_path / "ComfyUI")]) == 0
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["diffusion_models/flux1-dev.safetensors", "0.0", "GB", "flux-dev", "ready"]
    assert second.startswith("checkpoints/other.safetensors") and "is not recognized" in second


def test_a_control_network_s_folder_is_described_and_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn_data() / "flux_controls/plain/network"
    shown = info(folder, capsys)
    assert (shown["is"], shown["family"], shown["component"]) == (
        ["FLUX.1's control network"],
        ["FLUX.1"],
        ["control network"],
    )
    assert main(["generate", "a fox", "--model", str(folder), "-o", "x.png"]) == 2
    assert "config.json says FluxControlNetModel, which is not an architecture" in capsys.readouterr().err


SIZES = {
    "adapter": {"picture_width": 24, "tokens": 4, "token_width": 40, "blocks": 2, "block_width": 48},
    "instantx": {"picture_width": 8, "tokens": 5, "token_width": 40, "blocks": 4, "block_width": 48},
}
TITLES = {"adapter": "XLabs' IP-Adapter for FLUX.1", "instantx": "InstantX' IP-Adapter for FLUX.1"}


@pytest.mark.parametrize("layout", SIZES)
def test_an_ip_adapter_says_what_it_is_for_which_model_and_its_sizes(
    layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drawn_data() / "flux_ip_adapter/dev" / layout
    shown = info(folder, capsys)
    assert shown["is"] == [TITLES[layout]] and shown["used_by"] == "FLUX.1, as ip_adapter"
    assert shown["sizes"] == SIZES[layout]
    assert main(["generate", "a fox", "--model", str(folder / "model.safetensors"), "-o", "x.png"]) == 2
    assert "give a model, and its folder as ip_adapter with a picture." in capsys.readouterr().err


def test_an_ip_adapter_in_diffusers_names_is_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"image_proj.proj.weight": (160, 24), "image_proj.norm.weight": (40,)}
    shapes |= {f"ip_adapter.{block}.to_{part}_ip.weight": (48, 40) for block in range(2) for part in "kv"}
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    shown = info(tmp_path / "a.safetensors", capsys)
    assert shown["is"] == [TITLES["adapter"] + ", in diffusers' names"] and shown["sizes"] == SIZES["adapter"]
    save_file({name: np.zeros(2, np.float16) for name in shapes}, tmp_path / "b.safetensors")
    assert info(tmp_path / "b.safetensors", capsys)["is"] == "not recognized"


def test_a_component_of_a_folder_names_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn_data() / "flux/dev"
    for component in ("transformer", "vae"):
        file = folder / component / "diffusion_pytorch_model.safetensors"
        assert main(["generate", "a fox", "--model", str(file), "-o", "x.png"]) == 2
        assert (
            capsys.readouterr().err == f"mlx-imagegen: {file} is a part of the model in {folder}; give that folder.\n"
        )
    assert info(folder / "transformer/diffusion_pytorch_model.safetensors", capsys)["is"] == (
        f"a part of the model in {folder}"
    )
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    assert info(tmp_path / "a.safetensors", capsys)["is"] == "not recognized"


def test_redux_embedder_says_what_it_is_used_as(capsys: pytest.CaptureFixture[str]) -> None:
    shown = info(drawn_data() / "flux_redux/dev/redux/image_embedder", capsys)
    assert (shown["is"], shown["used_by"]) == (["FLUX.1-Redux' embedder"], "FLUX.1, as redux")
    assert shown["sizes"] == {"picture_width": 12, "token_width": 40}


def test_a_folder_s_info_names_every_file_that_loading_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformer, vae = tmp_path / "transformer", tmp_path / "vae"
    transformer.mkdir()
    vae.mkdir()
    shutil.copy(drawn_data() / "flux/dev/transformer/config.json", transformer)
    for name in ("transformer/a", "transformer/b", "vae/c"):
        save_file({name[-1]: np.zeros(5, np.float32)}, tmp_path / f"{name}.safetensors")
    for folder, files in ((transformer, "ab"), (vae, "cd")):
        weight_map = {name: f"{name}.safetensors" for name in files}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    size = (transformer / "b.safetensors").stat().st_size
    with (transformer / "b.safetensors").open("r+b") as file:
        file.truncate(size - 4)
    shown = info(tmp_path, capsys)
    assert shown["family"] == "FLUX.1" and shown["damaged"] == [
        f"{transformer / 'b.safetensors'} is {size - 4} bytes long, its header describes {size} bytes. The file is "
        "damaged or its download did not finish: delete it and download it again.",
        f"{vae}: 1 of 2 shards are missing (d.safetensors), as model.safetensors.index.json names them. The download "
        "did not finish: run it again.",
    ]
    assert main(["info", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\ndamaged ") == 2, "a line each"
    shutil.rmtree(vae)
    save_file({"b": np.zeros(5, np.float32)}, transformer / "b.safetensors")
    assert "damaged" not in info(tmp_path, capsys)
