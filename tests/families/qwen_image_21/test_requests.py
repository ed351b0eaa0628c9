"""What users ask of Qwen-Image-2.1: sizes, steps, a second branch, references, alpha; and what is read for it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mlx_imagegen import load
from mlx_imagegen.errors import QuantizationError, RequestError
from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.latents import LatentFamily
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.modulation import QwenImage21Modulators
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.hub import download
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.image import on_white, open_picture, read_metadata
from mlx_imagegen.loading.modules import layers, own_parameters
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.request.job import Job, resolve
from mlx_imagegen.sampling import FlowMatchConfig, flow_match_schedule
from tests.conftest import Ran
from tests.families.qwen_image_21.test_qwen_image_21 import MODEL, open_pipeline, options_of, references_of

SHARED = Path(__file__).parents[4] / "shared/facts/schedules3.json"
SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32}
PICTURE = Image.new("RGB", (300, 200), "blue")
SCHEDULER = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0,
    "shift_terminal": 0.02, "use_dynamic_shifting": True,
}  # fmt: skip
# diffusers' first three and last three sigmas before the closing 0, by the picture's side
SIGMAS = {
    1024: (1.0, 0.986963749, 0.973592997, 0.113532543, 0.0678805709, 0.0199999809),
    2048: (1.0, 0.992645979, 0.985012949, 0.175179422, 0.102229536, 0.0199999809),
}


def ask(name: str = "qwen-image-2.1", **parameters: Any) -> Job:
    return resolve(manifests()[name], 32, "a fox", seed=1, **parameters)[0]


# Sizes, steps, schedules


def test_the_defaults_are_the_models_own() -> None:
    settings = ask().settings
    assert (settings.width, settings.height, settings.steps, settings.cfg) == (2048, 2048, 40, 1.0)
    assert ask("qwen-image-2.1-turbo").settings.steps == 8
    assert ask().negative is None


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        ("4:3", (2400, 1792)),
        ("2:3", (1696, 2528)),
        ("16:9", (2752, 1536)),
        ("1.8", (2752, 1536)),
        ("9:20", (1536, 2752)),
    ],
)
def test_a_shape_is_the_nearest_of_its_list(aspect: str, size: tuple[int, int]) -> None:
    settings = ask(aspect=aspect).settings
    assert (settings.width, settings.height) == size


@pytest.mark.parametrize("width", [1000, 1040, 16])
def test_sides_are_multiples_of_32(width: int) -> None:
    with pytest.raises(RequestError, match=f"width {width}: qwen-image-2.1 needs a multiple of 32"):
        ask(width=width, height=1024)


@pytest.mark.parametrize("side", SIGMAS)
def test_forty_steps_walk_diffusers_schedule(side: int) -> None:
    schedule = flow_match_schedule(FlowMatchConfig.read(SCHEDULER, "scheduler"), 40, (side // 16) ** 2)
    assert [*schedule.sigmas[:3], *schedule.sigmas[-4:-1]] == pytest.approx(SIGMAS[side], abs=2e-7)
    assert (schedule.sigmas[-1], schedule.steps) == (0, 40)
    if SHARED.is_file():
        stored = json.loads(SHARED.read_text())[f"qwen21_{side}_40"]
        assert schedule.sigmas == pytest.approx(stored["sigmas"], abs=2e-7)
        assert schedule.timesteps == pytest.approx(stored["timesteps"], abs=2e-4)


def test_turbo_walks_its_own_sigmas_without_a_shift() -> None:
    own = manifests()["qwen-image-2.1-turbo"].extras["sample_sigmas"]
    config = FlowMatchConfig.read(SCHEDULER | {"use_dynamic_shifting": False, "shift_terminal": None}, "scheduler")
    schedule = flow_match_schedule(config, 8, 4096, own_sigmas=own)
    assert schedule.sigmas == (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0.0)
    fewer = flow_match_schedule(config, 4, 4096, own_sigmas=own).sigmas
    assert fewer[0] == 1.0 and fewer[3:] == (0.414568, 0.0) and len(fewer) == 5
    assert list(fewer) == sorted(fewer, reverse=True)


def test_a_shift_takes_the_place_of_the_model_s_own() -> None:
    family = open_pipeline(MODEL).family
    settings = Settings(64, 64, 4, 1.0, extras={"shift": 3.0})
    assert family.schedule(settings).sigmas == pytest.approx([1, 0.9, 0.75, 0.5, 0])


# Guidance


def test_a_second_branch_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    call = QwenImage21Transformer.__call__
    monkeypatch.setattr(
        QwenImage21Transformer, "__call__", lambda self, x, *rest: passes.append(1) or call(self, x, *rest)
    )
    pipeline = load(MODEL)
    pipeline.generate("a fox", **SMALL)
    assert len(passes) == 1
    pipeline.generate("a fox", **SMALL | {"guidance": 4.0})
    assert len(passes) == 3
    (note,) = pipeline.generate("a fox", negative_prompt="blurry", **SMALL).report.notes
    assert "negative prompt has no effect" in note and len(passes) == 4


def test_what_stands_before_the_picture_is_computed_once_for_all_steps_and_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    exact = QwenImage21Transformer.prefix
    monkeypatch.setattr(
        QwenImage21Transformer, "prefix", lambda self, txt, *rest: made.append(txt.shape[1]) or exact(self, txt, *rest)
    )
    load(MODEL).generate("a fox", **SMALL | {"steps": 3, "seed": [1, 2], "guidance": 2.0, "negative_prompt": "a hare"})
    assert len(made) == 2


# References and alpha


def test_a_reference_gives_the_picture_its_shape() -> None:
    settings = ask(references=[PICTURE]).settings
    assert (settings.width, settings.height) == (1248, 832)
    assert (ask(references=[PICTURE], width=512, height=512).settings.width) == 512


def test_eleven_references_are_refused_before_anything_is_read() -> None:
    assert len(ask(references=[PICTURE] * 10).prompt.references) == 10
    with pytest.raises(RequestError, match="11 pictures are given, qwen-image-2.1 takes up to 10"):
        ask(references=[PICTURE] * 11)


def test_ten_references_are_drawn_with() -> None:
    pictures = [*references_of(MODEL, 3)] * 3 + [PICTURE]
    assert open_pipeline(MODEL).generate("a fox", references=pictures, **SMALL).image.size == (32, 32)


@pytest.mark.parametrize("references", [0, 1])
def test_a_placeholder_in_the_prompt_is_refused(references: int) -> None:
    with pytest.raises(RequestError, match=r"'<\|image_pad\|>'"):
        open_pipeline(MODEL).generate("a <|image_pad|> fox", references=[PICTURE] * references, **SMALL)


def test_an_alpha_reaches_the_autoencoder_and_lies_on_white_for_the_language_model() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert on_white(clear.convert("RGB"), clear.getchannel("A")).getpixel((5, 5)) == (255, 255, 255)
    family = open_pipeline(MODEL).family
    settings = Settings(32, 32, 1, 1.0)
    red, hidden, white = (
        family.encode(Prompt("a fox", (picture,)), settings)[0]
        for picture in (clear.convert("RGB"), clear, Image.new("RGB", (64, 64), "white"))
    )
    assert np.array_equal(hidden.txt, white.txt) and not np.array_equal(hidden.txt, red.txt)
    assert not np.array_equal(hidden.references.tokens, white.references.tokens)
    assert not np.array_equal(hidden.references.tokens, red.references.tokens)


def test_a_picture_s_alpha_is_kept_only_where_the_model_takes_it() -> None:
    clear = Image.new("LA", (64, 64), (200, 10))
    (reference,) = ask(references=[clear]).prompt.references
    assert reference.mode == "RGBA" and reference.getpixel((0, 0)) == (200, 200, 200, 10)
    assert ask(image=clear, width=64, height=64).image.mode == "RGBA"  # type: ignore[union-attr]
    assert ask(references=[np.zeros((64, 64, 4), np.uint8)]).prompt.references[0].mode == "RGBA"
    other = resolve(manifests()["qwen-image-edit-2511"], 16, "a fox", seed=1, references=[clear])[0]
    assert other.prompt.references[0].mode == "RGB"
    with pytest.raises(RequestError, match=r"\[height, width, 3\], this one has \(64, 64, 4\)"):
        resolve(manifests()["qwen-image-edit-2511"], 16, "a fox", seed=1, references=[np.zeros((64, 64, 4), np.uint8)])


@pytest.mark.parametrize("name", ["qwen-image", "flux-dev", "hidream-o1"])
def test_other_models_have_no_alpha(name: str) -> None:
    with pytest.raises(RequestError, match=f"transparent: {name}'s pictures have no alpha"):
        resolve(manifests()[name], 16, "a fox", seed=1, transparent=True)
    assert "transparent" not in resolve(manifests()[name], 16, "a fox", seed=1, transparent=False)[0].settings.extras


def test_transparent_without_a_word_in_the_prompt_is_noted() -> None:
    pipeline = load(MODEL)
    (note,) = pipeline.generate("a fox", transparent=True, **SMALL).report.notes
    assert "This is an RGBA image with transparency" in note
    words = "This is an RGBA image with transparency. A fox."
    assert not pipeline.generate(words, transparent=True, **SMALL).report.notes


def test_a_transparent_picture_is_a_png_with_four_channels_that_is_made_again(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    draw = ("a transparent fox", "--model", MODEL, "--size", "32x32", "--steps", 1, "--seed", 3, "--quiet")
    assert cli(*draw, "--transparent", "-o", "a.png", "--record-paths").code == 0
    first = Image.open("a.png")
    record = read_metadata(Path("a.png"))
    assert first.mode == "RGBA" and record["transparent"] is True
    assert record["licence"] == "Qwen Research License (no commercial use)"
    assert cli("--from", "a.png", "-o", "b.png", "--quiet").code == 0
    assert Image.open("b.png").tobytes() == first.tobytes()
    assert cli(*draw, "--transparent", "-o", "a.webp").code == 0 and Image.open("a.webp").mode == "RGBA"
    refused = cli(*draw, "--transparent", "-o", "a.jpg")
    assert refused.code and "JPEG has no alpha" in refused.err and not Path("a.jpg").exists()
    assert cli(*draw, "-o", "plain.jpg").code == 0
    again = open_picture(tmp_path / "cwd/a.png", alpha=True)
    assert np.array_equal(np.asarray(again), np.asarray(first))


def test_a_picture_to_start_from_may_have_an_alpha() -> None:
    pipeline = load(MODEL)
    seen = references_of(MODEL, 2)[1]
    made = [
        pipeline.generate(
            "a transparent fox", image=image, strength=0.5, transparent=True, **SMALL | {"steps": 4}
        ).image
        for image in (seen, seen.convert("RGB"), seen.convert("RGB").convert("RGBA"))
    ]
    assert made[0].tobytes() != made[1].tobytes()
    assert made[1].tobytes() == made[2].tobytes()  # opaque where nothing is said


@pytest.mark.parametrize("transparent", [False, True])
def test_outside_a_mask_the_given_picture_stays_with_its_alpha(transparent: bool) -> None:
    given = np.asarray(Image.effect_noise((64, 32), 90).convert("RGBA")).copy()
    given[:, :24, 3] = 40
    given = given if transparent else given[..., :3]
    box = {"mask_box": [32, 0, 64, 32], "width": 64, "height": 32}
    result = load(MODEL).generate(
        "a transparent fox", image=given, strength=0.9, transparent=transparent, **SMALL | {"steps": 2} | box
    )
    made = np.asarray(result.image)
    assert made.shape == given.shape and np.array_equal(made[:, :32], given[:, :32])
    assert np.abs(made[:, 40:].astype(int) - given[:, 40:]).max() > 3


# What is read, and what stays


def test_the_licence_is_shown_before_a_download_and_in_the_list(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    licence = "Qwen Research License (no commercial use)"
    listed = [line for line in cli("models").out.splitlines() if line.startswith("qwen-image-2.1")]
    assert len(listed) == 2 and all(line.endswith(licence) for line in listed)
    asked: list[download.Download] = []
    monkeypatch.setattr(download, "fetch_files", lambda wanted, *rest: asked.append(wanted) or MODEL)
    download.locate("qwen-image-2.1-turbo", lambda line: None)
    assert [(wanted.licence, wanted.repo) for wanted in asked] == [(licence, "Qwen/Qwen-Image-2.1-Turbo")]


def test_text_to_image_never_imports_mlx_vlm() -> None:
    code = (
        "import sys; from mlx_imagegen import generate;"
        f"generate('a fox', model={str(MODEL)!r}, seed=1, steps=1, width=32, height=32);"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx_vlm', 'transformers', 'torch')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_stages_follow_each_other_and_leave_nothing_loaded() -> None:
    pipeline = open_pipeline(MODEL, resident=False)
    seen: list[set[str]] = []

    def look(event: Any) -> None:
        seen.append({name for name, component in pipeline.family.components.items() if component.loaded})

    pipeline.generate("a fox", references=[PICTURE], on_step=look, **SMALL)
    assert seen == [{"transformer"}]
    assert not any(component.loaded for component in pipeline.family.components.values())


def test_references_are_encoded_once_for_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    exact = LatentFamily.encode_pictures
    monkeypatch.setattr(
        LatentFamily, "encode_pictures", lambda self, pictures: made.append(len(pictures)) or exact(self, pictures)
    )
    open_pipeline(MODEL).generate(["a fox", "a hare"], references=[PICTURE], **SMALL | {"guidance": 4.0})
    assert made == [1]


def test_the_modulation_is_not_resident() -> None:
    family = load(MODEL).family
    paths = {path for path, _ in family.components["transformer"].loaded_layers()}
    assert not [path for path in paths if path.startswith(("modulation", "norm_out", "time_text_embed"))]


def test_a_packed_folder_draws_with_references_and_can_not_be_folded(tmp_path: Path) -> None:
    """q8 of layers that are narrower than a group stays dense; the vision tower comes along."""
    quantize(MODEL, tmp_path / "q8", quant="q8")
    options = options_of(MODEL)
    (tmp_path / "q8/options.json").write_text(json.dumps(options))
    made = open_pipeline(tmp_path / "q8").generate("a fox", references=references_of(MODEL, 2), **SMALL)
    assert made.image.size == (32, 32)
    with pytest.raises(QuantizationError, match="one hundredth of its weights"):
        quantize(MODEL, tmp_path / "folded", quant="q8", fold=4)


def draw_wide(folder: Path) -> Path:
    """The stored model with a transformer of 64 channels, whose layers have whole groups to pack."""
    shutil.copytree(MODEL, folder)
    path = folder / "transformer/config.json"
    data = json.loads(path.read_text()) | {
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "axes_dims_rope": [4, 14, 14],
    }
    path.write_text(json.dumps(data))
    config, dice, tensors = QwenImage21Config.read(data, path), np.random.default_rng(0), {}
    for tree in (QwenImage21Transformer(config), QwenImage21Modulators(config)):
        for place, layer in layers(tree):
            for name, value in own_parameters(layer).items():
                drawn = dice.standard_normal(value.shape) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
                plain = value.ndim > 1 or "text_norm" in place
                tensors[f"{place}.{name}"] = mx.array((drawn + (not plain)).astype(np.float32))
    mx.save_safetensors(str(folder / "transformer/diffusion_pytorch_model.safetensors"), tensors)
    return folder


def test_packed_weights_draw_nearly_the_same_picture(tmp_path: Path) -> None:
    """Packed while loading and packed by the converter, with a LoRA on top: the same bits."""
    wide, asked = draw_wide(tmp_path / "wide"), SMALL | {"steps": 2, "width": 64, "height": 64}
    full = np.asarray(load(wide).generate("a fox", **asked).image).astype(float)
    quantize(wide, tmp_path / "q8", quant="q8")
    folder = load(tmp_path / "q8")
    held = folder.family.components["transformer"].held_as
    assert held.startswith("8-bit 14") and "float32" in held  # both ends stay as they are
    packed = np.asarray(folder.generate("a fox", **asked).image).astype(float)
    assert 0 < np.abs(packed - full).mean() < 4 < full.std()
    assert np.array_equal(packed, np.asarray(load(wide, quant="q8").generate("a fox", **asked).image))
    rows = {
        f"transformer_blocks.0.img_mlp.out.lora_{part}.weight": shape
        for part, shape in (("A", (2, 192)), ("B", (64, 2)))
    }
    save_file({name: np.full(shape, 0.05, np.float32) for name, shape in rows.items()}, tmp_path / "lora.safetensors")
    merged = [
        load(path, lora=[tmp_path / "lora.safetensors"], quant=quant)
        for path, quant in ((wide, "q8"), (tmp_path / "q8", None))
    ]
    first, second = (np.asarray(pipeline.generate("a fox", **asked).image) for pipeline in merged)
    assert np.array_equal(first, second) and not np.array_equal(first, packed)
