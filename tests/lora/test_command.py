"""The command line: `lora FILE`, `--lora` and what a picture's record says of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.lora.file import open_lora
from tests.conftest import Ran
from tests.lora.test_file import write
from tests.lora.test_merge import DATA
from tests.lora.test_names import FORMATS
from tests.lora.test_pipeline import draw_lora
from tests.tiny import draw_flux

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("command") / "model")


def test_what_a_file_is(cli: Cli) -> None:
    ran = cli("lora", DATA / "flux1/kohya/lora.safetensors")
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
    told = json.loads(cli("lora", DATA / "flux1" / name / "lora.safetensors", "--json").out)
    assert told["kind"] == kind and told["base"] == "FLUX.1"


def test_a_text_encoder_s_number_is_no_block_s(cli: Cli, model: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", model, 1, part="wo", component="text_encoder_2")
    told = json.loads(cli("lora", style, "--json").out)
    assert told["targets"] == ["text_encoder_2.encoder.block.{0-1}.layer.1.DenseReluDense.wo"]


def test_what_finds_a_place(cli: Cli, model: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", model, 1, part="to_q")
    told = json.loads(cli("lora", style, "--model", model, "--json").out)
    assert told["matches"] == f"5 of 5 modules of {model}" and told["left over"] == "nothing"
    assert told["targets"] == [
        "transformer.single_transformer_blocks.{0-2}.attn.to_q",
        "transformer.transformer_blocks.{0-1}.attn.to_q",
    ]
    ran = cli("lora", DATA / "flux1/kohya/lora.safetensors", "--model", model, "--json")
    told = json.loads(ran.out)
    assert told["matches"].startswith("0 of 13 modules")
    assert ran.code == 2 and "none of its modules has a place" in ran.err, "for scripts that ask whether it fits"
    assert (
        "'lora_unet_double_blocks_0_img_attn_proj': expected [64, 64], found down [3, 8], up [8, 3]"
        in told["left over"]
    )


def test_a_picture_with_loras(cli: Cli, model: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", model, 1, size=0.3)
    asked = ("generate", "a red fox", "--model", model, "--seed", 1, "--steps", 1, "--size", "64x48", "--quiet")
    assert cli(*asked, "-o", "plain.png").code == 0
    assert cli(*asked, "-o", "styled.png", "--lora", f"{style}:0.5", "--record-paths").code == 0
    plain, styled = Path("plain.png").read_bytes(), Path("styled.png").read_bytes()
    assert plain != styled
    assert json.loads(cli("info", "styled.png", "--json").out)["lora"] == [[str(style), 0.5]]
    assert cli("generate", "--from", "styled.png", "--quiet", "-o", "again.png", "--record-paths").code == 0
    pictures = [json.loads(cli("info", name, "--json").out) for name in ("styled.png", "again.png")]
    assert pictures[0]["lora"] == pictures[1]["lora"]


def test_refusals_are_one_line(cli: Cli, model: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "style.ckpt"
    pickle.write_bytes(b"")
    ran = cli("generate", "a fox", "--model", model, "--lora", pickle)
    assert ran.code == 2 and ran.err.count("\n") == 1 and "pickle" in ran.err
    ran = cli("lora", tmp_path / "nothing.safetensors")
    assert ran.code == 2 and ran.err.count("\n") == 1 and "there is no LoRA file" in ran.err


TEXTS = {
    f"lora_te{number}_{module}.lora_{end}.weight": {"shape": shape}
    for number, module, size in (
        (1, "text_model_encoder_layers_11_mlp_fc1", (3072, 768)),
        (3, "encoder_block_23_layer_1_DenseReluDense_wo", (4096, 10240)),
        (2, "encoder_block_5_layer_0_SelfAttention_q", (4096, 4096)),  # OneTrainer's name for the same encoder
    )
    for end, shape in (("down", (1, size[1])), ("up", (size[0], 1)))
}


@pytest.mark.parametrize(
    ("format", "model"),
    [
        ("flux_kohya_all_in", "flux-dev"), ("flux_xlabs", "flux-dev"), ("flux_comfy", "flux-dev"),
        ("texts", "flux-dev"), ("qwen_lightning", "qwen-image"), ("qwen_musubi", "qwen-image"),
        ("hidream_musubi", "hidream-o1"),
    ],
)  # fmt: skip
def test_shapes_are_checked_without_the_model(
    cli: Cli, format: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    patterns = TEXTS if format == "texts" else FORMATS[format]
    shapes = {key.replace("{i}", str(each.get("count", 1) - 1)): each["shape"] for key, each in patterns.items()}
    tensors = {key: ("BF16", list(thin(key, shape))) for key, shape in shapes.items()}
    file = write(tmp_path / "style.safetensors", tensors)
    told = json.loads(cli("lora", file, "--json").out)
    count = len(open_lora(file).entries)
    assert told["matches"] == f"{count} of {count} modules of {model}" and told["left over"] == "nothing"
    wide = next(key for key in tensors if key.endswith(("down.weight", "lora_A.weight")))
    stray = {
        "lora_unet_transformer_blocks_3_unheard_of.lora_down.weight": ("BF16", [1, 2]),
        "odd.ending": ("BF16", [1]),
    }
    write(file, tensors | stray | {wide: ("BF16", [1, 7])})
    told = json.loads(cli("lora", file, "--json").out)
    assert told["matches"] == f"{count - 1} of {count + 2} modules of {model}"
    first, second, third = sorted(told["left over"])
    assert "expected [" in first and "down [1, 7]" in first
    assert second == "lora_unet_transformer_blocks_3_unheard_of: no such module"
    assert third == "odd.ending: its ending is of no known kind"


def thin(key: str, shape: Sequence[int]) -> Sequence[int]:
    """The same module's part at rank 1."""
    if len(shape) < 2:
        return shape
    return (1, shape[1]) if key.endswith(("down.weight", "lora_A.weight")) else (shape[0], 1)


def test_names_that_two_models_share(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention alone has the same names and shapes in FLUX.1 and Qwen-Image; the built-in models have others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    module = "transformer.transformer_blocks.0.attn.to_q"
    for width, model in ((3072, "flux-dev"), (demo_width("flux"), "flux-demo")):
        pair = {f"{module}.lora_A.weight": ("BF16", [1, width]), f"{module}.lora_B.weight": ("BF16", [width, 1])}
        told = json.loads(cli("lora", write(tmp_path / "style.safetensors", pair), "--json").out)
        assert told["base"] == "FLUX.1, FLUX.2 or Qwen-Image"
        assert told["matches"] == f"1 of 1 modules of {model}"


def demo_width(name: str) -> int:
    checkpoint = open_checkpoint(data_folder("weights") / "demo" / name / "transformer")
    return checkpoint["transformer_blocks.0.attn.to_q.weight"].shape[0]


def test_a_model_that_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.1-schnell has no guidance to change."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    pair = {"guidance_in.in_layer.lora_A.weight": ("BF16", [1, 256]),
            "guidance_in.in_layer.lora_B.weight": ("BF16", [3072, 1])}  # fmt: skip
    file = write(tmp_path / "style.safetensors", pair)
    for model, count in (("flux-schnell", 0), ("flux-dev", 1)):
        told = json.loads(cli("lora", file, "--model", model, "--json").out)
        assert told["matches"] == f"{count} of 1 modules of {model}"


def test_a_file_for_a_model_that_is_not_ours(cli: Cli, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"
    told = json.loads(cli("lora", write(tmp_path / "sd.safetensors", {key: ("F16", [1, 4])}), "--json").out)
    assert told["base"] == "Stable Diffusion or SDXL" and told["matches"].startswith("not checked")
    assert told["kind"] == "incomplete"
