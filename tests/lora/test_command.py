"""The command line: `lora FILE`, `--lora` and what a picture's record says of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen.lora.file import open_lora
from tests.conftest import Ran
from tests.lora.test_merge import DATA
from tests.lora.test_pipeline import draw_lora
from tests.tiny import draw_flux

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("command") / "model")


def test_what_a_file_is(cli: Cli) -> None:
    ran = cli("lora", DATA / "flux/kohya/lora.safetensors")
    assert ran.code == 0
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines() if not line.startswith(" "))
    assert lines["format"] == "kohya sd-scripts"
    assert lines["base"] == "FLUX.1"
    assert lines["kind"] == "LoRA"
    assert lines["rank"] == "2 (7), 3 (6)"
    assert "39 tensors (bf16)" in lines["size"]
    assert "lora_unet_single_blocks_{0}_linear1" in ran.out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("peft_dora", "DoRA"), ("lokr_lycoris", "LoKr"), ("loha_lycoris", "LoHa"), ("differences", "difference")],
)
def test_kinds(cli: Cli, name: str, kind: str) -> None:
    told = json.loads(cli("lora", DATA / "flux" / name / "lora.safetensors", "--json").out)
    assert told["kind"] == kind and told["base"] == "FLUX.1"


def test_what_finds_a_place(cli: Cli, model: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", model, 1, part="to_q")
    told = json.loads(cli("lora", style, "--model", model, "--json").out)
    assert told["matches"] == f"5 of 5 modules of {model}" and told["left over"] == "nothing"
    assert told["targets"] == [
        "transformer.single_transformer_blocks.{0-2}.attn.to_q",
        "transformer.transformer_blocks.{0-1}.attn.to_q",
    ]
    told = json.loads(cli("lora", DATA / "flux/kohya/lora.safetensors", "--model", model, "--json").out)
    assert told["matches"].startswith("0 of 13 modules")
    assert (
        "'lora_unet_double_blocks_0_img_attn_proj': expected [64, 64], found down [3, 8], up [8, 3]"
        in told["left over"]
    )


def test_a_picture_with_loras(cli: Cli, model: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", model, 1, size=0.3)
    asked = ("generate", "a red fox", "--model", model, "--seed", 1, "--steps", 1, "--size", "64x48", "--quiet")
    assert cli(*asked, "-o", "plain.png").code == 0
    assert cli(*asked, "-o", "styled.png", "--lora", f"{style}:0.5").code == 0
    plain, styled = Path("plain.png").read_bytes(), Path("styled.png").read_bytes()
    assert plain != styled
    assert json.loads(cli("info", "styled.png", "--json").out)["lora"] == [[str(style), 0.5]]
    assert cli("generate", "--from", "styled.png", "--quiet", "-o", "again.png").code == 0
    pictures = [json.loads(cli("info", name, "--json").out) for name in ("styled.png", "again.png")]
    assert pictures[0]["lora"] == pictures[1]["lora"]


def test_refusals_are_one_line(cli: Cli, model: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "style.ckpt"
    pickle.write_bytes(b"")
    ran = cli("generate", "a fox", "--model", model, "--lora", pickle)
    assert ran.code == 2 and ran.err.count("\n") == 1 and "pickle" in ran.err
    ran = cli("lora", tmp_path / "nothing.safetensors")
    assert ran.code == 2 and ran.err.count("\n") == 1 and "there is no LoRA file" in ran.err


@pytest.mark.parametrize(
    "format",
    [
        "flux/kohya_all",
        "flux/xlabs",
        "flux/kohya flux/texts_kohya",
        "flux/comfyui flux/texts_comfyui",
        "qwen_image/musubi_all",
        "hidream_o1/musubi",
    ],
)
def test_without_the_model_names_are_checked(
    cli: Cli, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    file = tmp_path / "style.safetensors"
    parts = [mx.load(str(DATA / part / "lora.safetensors")) for part in format.split()]
    stored = {key: value for part in parts for key, value in part.items()}
    far = {re.sub(r"(blocks[._])0([._])", r"\g<1>17\2", key): value for key, value in stored.items()}
    mx.save_safetensors(str(file), far)
    told = json.loads(cli("lora", file, "--json").out)
    count = len(open_lora(file).entries)
    assert told["matches"].startswith(f"{count} of {count} modules by name") and told["left over"] == "nothing"
    stray = {"lora_unet_transformer_blocks_3_unheard_of.lora_down.weight": mx.ones((2, 2)), "odd.ending": mx.ones(1)}
    mx.save_safetensors(str(file), far | stray)
    told = json.loads(cli("lora", file, "--json").out)
    assert told["left over"] == [
        "lora_unet_transformer_blocks_3_unheard_of: no such module",
        "odd.ending: its ending is of no known kind",
    ]
