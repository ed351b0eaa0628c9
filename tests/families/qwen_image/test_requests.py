"""What users ask of Qwen-Image: sizes, second branches, references, long prompts; and what is read for it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, LoraError, MissingFileError, RequestError
from mlx_imagegen.families.base import Settings
from mlx_imagegen.families.qwen_image.editing import Editing
from mlx_imagegen.families.qwen_image.family import QwenImage
from mlx_imagegen.families.qwen_image.lightning import lightning_notes
from mlx_imagegen.families.schedule_tables import ScheduleTables
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.loading.checkpoint import Tensor
from mlx_imagegen.request.job import Job, resolve
from tests.families.qwen_image.test_qwen_image import DATA, open_pipeline, options_of

SHARED = Path(__file__).parents[4] / "shared/facts/schedules.json"
LIGHTNING = [name for name, manifest in manifests().items() if "lightning" in name and manifest.family == "qwen_image"]
EDITING = [name for name, manifest in manifests().items() if manifest.edits and manifest.family == "qwen_image"]
PICTURE = Image.new("RGB", (300, 200))
SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32, "guidance": 1.0}

# diffusers' first two and last two sigmas before the closing 0
SCHEDULES = {
    "qwen50_1328": ("qwen-image", 50, 1328, 1328, (1.0, 0.9909883141, 0.0637827515, 0.0199999809)),
    "qwen50_1664x928": ("qwen-image-2512", 50, 1664, 928, (1.0, 0.9906120300, 0.0620875954, 0.0199999809)),
    "qwen40_edit_1024": ("qwen-image-edit-2511", 40, 1024, 1024, (1.0, 0.9869637489, 0.0678805708, 0.0199999809)),
    "lightning4": ("qwen-image-lightning-4step", 4, 1328, 1328, (1.0, 0.8999999761, 0.75, 0.5)),
    "lightning8": ("qwen-image-2512-lightning", 8, 1328, 1328, (1.0, 0.9545454978, 0.5, 0.3000000119)),
}


def ask(model: str, **parameters: Any) -> Job:
    return resolve(manifests()[model], 16, "a fox", 1, **parameters)[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_diffusers(name: str) -> None:
    """Whatever the model's own scheduler file says, Lightning walks its own: 1, .9, .75, .5, not 1, .77, .46, .02."""
    model, steps, width, height, ends = SCHEDULES[name]
    kind = "zero" if "edit" in model else "image"
    family = open_pipeline(DATA / kind, model).family
    schedule = family.schedule(Settings(width, height, steps, 4.0))
    assert np.abs(np.array([*schedule.sigmas[:2], *schedule.sigmas[-3:-1]]) - ends).max() < 1e-7
    assert schedule.sigmas[-1] == 0 and np.allclose(schedule.timesteps, np.array(schedule.sigmas[:-1]) * 1000)
    if SHARED.is_file():
        assert np.abs(np.array(schedule.sigmas) - json.loads(SHARED.read_text())[name]["sigmas"]).max() < 1e-7


def test_a_shift_of_3_is_lightnings_schedule() -> None:
    """For its LoRA on a folder of one's own: constant at every size, and no terminal shift."""
    family = open_pipeline(DATA / "image").family
    for width in (512, 1328):
        schedule = family.schedule(ask("qwen-image", steps=4, width=width, shift=3).settings)
        assert np.allclose(schedule.sigmas, (1, 0.9, 0.75, 0.5, 0), rtol=0, atol=1e-7)
    assert ask("qwen-image", shift=3).record("cfg")["shift"] == 3
    with pytest.raises(RequestError, match="shift 0: give a number from 0.1"):
        ask("qwen-image", shift=0)
    with pytest.raises(RequestError, match="sampler: qwen-image has one sampler"):
        ask("qwen-image", shift=3, sampler="unipc")


def test_the_manifests_defaults() -> None:
    full, lightning, edit = (
        ask("qwen-image"),
        ask("qwen-image-lightning"),
        ask("qwen-image-edit-2511", references=[PICTURE]),
    )
    assert (full.settings.steps, full.settings.cfg, full.negative and full.negative.text) == (50, 4.0, " ")
    assert (lightning.settings.steps, lightning.settings.cfg, lightning.negative) == (8, 1.0, None)
    assert (edit.settings.steps, edit.settings.cfg, edit.negative and edit.negative.references) == (40, 4.0, (PICTURE,))
    assert ask("qwen-image-lightning-4step").settings.steps == 4


@pytest.mark.parametrize("model", LIGHTNING)
@pytest.mark.parametrize("knob", ["guidance", "true_cfg"])
def test_a_second_branch_is_refused_where_the_model_is_distilled(model: str, knob: str) -> None:
    references = {"references": [PICTURE]} if manifests()[model].edits else {}
    with pytest.raises(RequestError, match=f"{model} is distilled to run without a second branch"):
        ask(model, **{knob: 4.0}, **references)
    assert ask(model, **{knob: 1.0}, **references).negative is None


def test_a_negative_prompt_without_a_second_branch_is_said_to_have_no_effect() -> None:
    (note,) = ask("qwen-image-lightning", negative_prompt="blurry").notes
    assert "no effect" in note and "leave it out" in note
    (note,) = ask("qwen-image", negative_prompt="blurry", guidance=1.0).notes
    assert "no effect" in note and "set guidance above 1" in note
    assert not ask("qwen-image", negative_prompt="blurry").notes


def test_guidance_between_0_and_1_is_said_to_be_1() -> None:
    (note,) = ask("qwen-image", guidance=0.5).notes
    assert "0.5 is the same as 1" in note
    assert not ask("qwen-image", guidance=1.0).notes and not ask("qwen-image", guidance=0).notes


def test_a_side_of_nothing_is_not_taken_for_none_given() -> None:
    with pytest.raises(RequestError, match="width 0: "):
        ask("qwen-image-edit-2511", references=[PICTURE], width=0)


@pytest.mark.parametrize("side", [1000, 1330, 0, -16])
def test_sizes_must_be_multiples_of_16(side: int) -> None:
    with pytest.raises(RequestError, match=f"width {side}: qwen-image needs a multiple of 16"):
        ask("qwen-image", width=side)


@pytest.mark.parametrize("model", EDITING)
def test_editing_needs_a_picture(model: str) -> None:
    with pytest.raises(RequestError, match=f"{model} changes pictures, and none is given"):
        ask(model)


def test_the_first_editing_model_takes_one_picture_and_text_to_image_none() -> None:
    with pytest.raises(RequestError, match="takes up to 1"):
        ask("qwen-image-edit", references=[PICTURE, PICTURE])
    assert len(ask("qwen-image-edit-2509", references=[PICTURE] * 3).prompt.references) == 3
    with pytest.raises(RequestError, match="qwen-image takes none"):
        ask("qwen-image", references=[PICTURE])


def test_an_edited_pictures_size_follows_from_the_last_reference() -> None:
    """diffusers' rule: about 1024 x 1024 pixels, multiples of 32; a side that is given stays."""
    tall = Image.new("RGB", (200, 300))
    settings = ask("qwen-image-edit-2509", references=[tall, PICTURE]).settings
    assert (settings.width, settings.height) == (1248, 832)
    settings = ask("qwen-image-edit-2509", references=[PICTURE, tall], width=640).settings
    assert (settings.width, settings.height) == (640, 1248)


@pytest.mark.parametrize(("size", "refused"), [((3000, 14), True), ((10, 2001), True), ((2000, 10), False)])
def test_a_reference_too_narrow_to_be_seen_is_refused_before_anything_is_read(
    size: tuple[int, int], refused: bool
) -> None:
    if refused:
        with pytest.raises(RequestError, match=f"{size[0]}x{size[1]} is too narrow.*200 times"):
            ask("qwen-image-edit-2511", references=[PICTURE, Image.new("RGB", size)])
    else:  # and what is let through here, the eyes take, as it is resized for them
        editing = Editing.of(manifests()["qwen-image-edit-2511"])
        reference, _ = ask("qwen-image-edit-2511", references=[Image.new("RGB", size), PICTURE]).prompt.references
        width, height = editing.for_language(reference).size
        assert max(width, height) <= 200 * min(width, height)


def test_editing_reads_the_whole_prompt() -> None:
    """diffusers cuts nothing there, so that a length would be a knob without a use."""
    with pytest.raises(RequestError, match="qwen-image-edit-2509 reads the whole prompt; leave it out"):
        ask("qwen-image-edit-2509", references=[PICTURE], max_sequence_length=100)
    assert ask("qwen-image-edit", references=[PICTURE], max_sequence_length=1024).settings.cfg == 4.0  # from a record


def test_a_placeholder_in_the_prompt_is_refused() -> None:
    pipeline = open_pipeline(DATA / "edit")
    with pytest.raises(RequestError, match=r"'<\|image_pad\|>'"):
        pipeline.generate("a <|image_pad|> fox", references=[PICTURE], **SMALL)
    load(DATA / "image").generate("a <|image_pad|> fox", **SMALL)  # harmless where no picture is seen


def test_long_prompts_say_what_is_cut() -> None:
    """The words beyond the limit, and not a word of the template's own end."""
    pipeline = load(DATA / "image")
    (note,) = pipeline.generate("fox " * 20 + "zebra", max_sequence_length=12, **SMALL).report.notes
    assert "longer than 12 tokens" in note and note.endswith("zebra'")
    assert not pipeline.generate("fox", max_sequence_length=512, **SMALL).report.notes


def test_a_cut_prompt_is_the_shorter_prompt() -> None:
    """Words that are cut off change nothing; words that are not do."""

    def pixels(words: str) -> np.ndarray:
        return np.asarray(pipeline.generate(words, max_sequence_length=300, **SMALL).image)

    pipeline = load(DATA / "image")
    assert np.array_equal(pixels("fox " * 400 + "zebra"), pixels("fox " * 400 + "lamp"))
    assert not np.array_equal(pixels("fox zebra"), pixels("fox lamp"))


def test_a_lightning_lora_fits_only_its_own_base(flux_folder: Path) -> None:
    with pytest.raises(LoraError, match="Qwen-Image"):
        load(flux_folder, lora=[DATA / "image" / "lightning.safetensors"])


NAMED = {
    # file, model: what is said of the base, and of the steps
    ("Qwen-Image-Lightning-4steps-V1.1.safetensors", "qwen-image"): (None, "qwen-image-lightning-4step"),
    ("Qwen-Image-2512-Lightning-8steps-V1.0-fp32.safetensors", "qwen-image"): (
        "Qwen-Image-2512",
        "qwen-image-2512-lightning",
    ),
    ("Qwen-Image-Edit-2509-Lightning-4steps-V1.0.safetensors", "qwen-image-edit-2511"): ("Qwen-Image-Edit-2509", ""),
    ("Qwen-Image-Lightning-8steps-V2.0.safetensors", "qwen-image-2512-lightning"): ("Qwen-Image,", None),
    ("watercolour.safetensors", "qwen-image"): (None, None),
}


@pytest.mark.parametrize(("file", "model"), NAMED)
def test_a_lightning_loras_name_tells_what_its_tensors_do_not(file: str, model: str) -> None:
    base, ready = NAMED[file, model]
    notes = list(lightning_notes(manifests()[model], file))
    assert len(notes) == (base is not None) + (ready is not None)
    assert base is None or f"by its name for {base}" in notes[0]
    if ready is not None:
        assert f"steps {re.findall('([0-9]+)steps', file)[0]}, guidance 1 and shift 3" in notes[-1]
        assert (f"the model {ready}," in notes[-1]) == bool(ready)


def test_a_lightning_lora_by_hand_is_told_before_it_draws(tmp_path: Path) -> None:
    """And with the numbers that it asks for, it draws what the ready-made model draws."""
    file = tmp_path / "Qwen-Image-Lightning-4steps-V2.0.safetensors"
    shutil.copy(DATA / "image/lightning.safetensors", file)
    said: list[str] = []
    pipeline = load(DATA / "image", lora=[file], on_download=said.append)
    assert len(said) == 1 and said[0].startswith("note: Qwen-Image-Lightning-4steps")
    options = options_of(DATA / "image")
    noise = load_file(DATA / "image/reference.safetensors")
    asked = {name: options[name] for name in ("width", "height")} | {"steps": 4, "guidance": 1, "shift": 3}
    made = np.asarray(pipeline.generate(options["prompt"], noise=noise["noise"], **asked).image).astype(int)
    assert np.abs(made - noise["picture.lightning"].astype(int)).max() <= 1


def test_lm_head_and_eyes_are_not_read_and_the_table_by_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int | None]] = []
    exact = Tensor.bytes
    monkeypatch.setattr(
        Tensor, "bytes", lambda tensor, row=0, rows=None: read.append((tensor.name, rows)) or exact(tensor, row, rows)
    )
    load(DATA / "image").generate("a fox", **SMALL)
    names = {name for name, _ in read}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not any(name.startswith(("lm_head.", "visual.")) for name in names)
    assert {rows for name, rows in read if name == "model.embed_tokens.weight"} == {1}


def test_references_are_looked_at_once_for_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[Image.Image] = []
    exact = QwenImage.encode_pictures
    monkeypatch.setattr(QwenImage, "encode_pictures", lambda self, given: pictures.extend(given) or exact(self, given))
    pipeline = open_pipeline(DATA / "zero")
    pipeline.generate(["a fox", "a hare"], references=[PICTURE], **SMALL | {"guidance": 4.0})
    assert len(pictures) == 1
    pipeline.generate("a fox", references=[Image.new("RGB", (300, 200), "red")], **SMALL)
    assert len(pictures) == 2


def test_text_to_image_never_imports_mlx_vlm() -> None:
    code = (
        "import sys; from mlx_imagegen import generate;"
        f"generate('a fox', model={str(DATA / 'image')!r}, seed=1, steps=1, width=32, height=32);"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx_vlm', 'transformers', 'torch')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_stages_follow_each_other_and_leave_nothing_loaded() -> None:
    pipeline = open_pipeline(DATA / "zero", resident=False)
    seen: list[set[str]] = []

    def look(event: Any) -> None:
        seen.append({name for name, component in pipeline.family.components.items() if component.loaded})

    pipeline.generate("a fox", references=[PICTURE], on_step=look, **SMALL)
    assert seen == [{"transformer"}]
    assert not any(component.loaded for component in pipeline.family.components.values())


def test_editing_without_the_processors_file_names_it(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "edit", tmp_path / "model")
    shutil.rmtree(folder / "processor")
    with pytest.raises(MissingFileError, match="preprocessor_config.json"):
        open_pipeline(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "gelu"), ("rope_parameters", {"rope_theta": 5000.0}), ("deepstack_visual_indexes", [8])],
)
def test_other_eyes_are_refused_by_field(field: str, value: object, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "edit", tmp_path / "model")
    path = folder / "text_encoder/config.json"
    config = json.loads(path.read_text())
    config["vision_config"][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"vision_config.*{field.removesuffix('_parameters')}"):
        open_pipeline(folder)


def test_modulation_is_looked_for_once_for_a_schedule_until_a_lora_changes_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    find = ScheduleTables._found
    monkeypatch.setattr(ScheduleTables, "_found", lambda self, times: made.append(len(times)) or find(self, times))
    pipeline = load(DATA / "image")
    pipeline.generate(["a fox", "a hare"], **SMALL)
    pipeline.generate("a map", **SMALL | {"steps": 2})
    assert made == [1, 2]
    pipeline.set_lora([DATA / "image" / "lightning.safetensors"])
    pipeline.generate("a map", **SMALL | {"steps": 2})
    assert made == [1, 2, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 16), ("merge_size", 4), ("temporal_patch_size", 1), ("max_pixels", 10), ("resample", 99),
        ("image_mean", [0.5]), ("image_std", [0.5, 0.5, 0]),
    ],
)  # fmt: skip
def test_pictures_prepared_for_other_eyes_are_refused_by_field(field: str, value: object, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "edit", tmp_path / "model")
    path = folder / "processor/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=rf"preprocessor_config.json: field '{field}' is "):
        open_pipeline(folder)
