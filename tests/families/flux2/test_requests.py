"""What users ask of FLUX.2: sizes, schedules, guidance, references, LoRAs; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import LoraError, QuantizationError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.base import Prompt
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import Job, resolve
from mlx_imagegen.sampling import FlowMatchConfig, empirical_mu, flow_match_schedule
from tests.families.flux2.test_flux2 import DATA, open_pipeline

STORED = Path(__file__).parents[2] / "data/schedules/flux2.json"  # "tokens steps" -> diffusers' sigmas
PICTURE = Image.new("RGB", (300, 200), "red")
SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32}


def ask(model: str, **parameters: Any) -> Job:
    return resolve(manifests()[model], 16, "a fox", 1, **parameters)[0]


def test_mu_falls_beyond_its_measurements() -> None:
    assert [round(empirical_mu(tokens, 4), 3) for tokens in (4096, 4300, 4356, 16384)] == [2.291, 2.308, 1.194, 3.23]


def test_schedules_are_diffusers() -> None:
    """The shift follows from the picture's size and the number of steps, not from the config's two points."""
    config = FlowMatchConfig.read(manifests()["flux2-klein-4b"].extras["scheduler"], "x")
    stored = json.loads(STORED.read_text())
    assert len(stored) >= 5
    for name, sigmas in stored.items():
        tokens, steps = map(int, name.split())
        schedule = flow_match_schedule(config, steps, tokens, empirical_mu(tokens, steps))
        assert np.abs(np.array(schedule.sigmas) - sigmas).max() < 1e-6, name


def test_the_manifests_defaults() -> None:
    asked = {model: ask(model) for model in manifests() if manifests()[model].family == "flux2"}
    told = {
        model: (job.settings.steps, job.settings.guidance, job.settings.cfg, job.negative and job.negative.text)
        for model, job in asked.items()
    }
    assert told == {
        "flux2-klein-4b": (4, 1.0, 1.0, None),
        "flux2-klein-9b": (4, 1.0, 1.0, None),
        "flux2-klein-9b-kv": (4, 1.0, 1.0, None),
        "flux2-klein-base-4b": (50, 0.0, 4.0, ""),
        "flux2-klein-base-9b": (50, 0.0, 4.0, ""),
        "flux2-dev": (50, 4.0, 1.0, None),
    }


@pytest.mark.parametrize("model", ["flux2-klein-4b", "flux2-klein-9b", "flux2-klein-9b-kv"])
@pytest.mark.parametrize("knob", ["guidance", "true_cfg"])
def test_a_second_branch_is_refused_where_the_model_is_distilled(model: str, knob: str) -> None:
    with pytest.raises(RequestError, match=f"{model} is distilled to run without a second branch"):
        ask(model, **{knob: 4.0})


@pytest.mark.parametrize("side", [100, 1000, 24])
def test_sizes_that_are_no_multiples(side: int) -> None:
    with pytest.raises(RequestError, match=f"width {side}: flux2-klein-4b needs a multiple of 16 pixels"):
        ask("flux2-klein-4b", width=side)


def test_a_picture_is_as_large_as_the_first_reference() -> None:
    """Cut to whole tokens; brought down to a million pixels; a side that is given stays."""
    large = Image.new("RGB", (3000, 2000))
    for references, size in (
        ([PICTURE, large], (288, 192)),
        ([large, PICTURE], (1248, 832)),
        ([PICTURE.resize((1024, 1024))], (1024, 1024)),
    ):
        settings = ask("flux2-klein-4b", references=references).settings
        assert (settings.width, settings.height) == size
    assert ask("flux2-klein-4b", references=[PICTURE], height=512).settings.width == 288
    assert ask("flux2-klein-4b").settings.width == 1024


@pytest.mark.parametrize(("size", "why"), [((63, 100), "small.*64 pixels"), ((64, 520), "narrow.*8 times")])
def test_references_that_no_flux2_was_made_for(size: tuple[int, int], why: str) -> None:
    with pytest.raises(RequestError, match=f"references: a picture of {size[0]}x{size[1]} is too {why}"):
        ask("flux2-klein-4b", references=[Image.new("RGB", size)])


def test_too_many_references() -> None:
    with pytest.raises(RequestError, match="11 pictures are given, flux2-klein-4b takes up to 10"):
        ask("flux2-klein-4b", references=[PICTURE] * 11)


def test_text_alone_loads_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = open_pipeline(DATA / "klein")
    read: list[str] = []
    for name, component in pipeline.family.components.items():
        build = component.empty
        monkeypatch.setattr(component, "empty", lambda build=build, name=name: read.append(name) or build())
    pipeline.resident = False
    pipeline.generate("a fox", guidance=1.0, **SMALL)
    assert read == ["text_encoder", "transformer", "vae_decoder"]
    read.clear()
    pipeline.generate("a fox", guidance=1.0, references=[PICTURE.resize((64, 64))], **SMALL)
    assert read == ["text_encoder", "vae_encoder", "transformer", "vae_decoder"]


def test_kept_references_do_not_depend_on_the_step_or_the_prompt() -> None:
    """Their keys and values are computed once; ordinary weights give another picture with them in every step."""
    kept, usual = (open_pipeline(DATA / "klein", name) for name in ("flux2-klein-9b-kv", "flux2-klein-4b"))
    asked: dict[str, Any] = SMALL | {"steps": 2, "references": [PICTURE.resize((64, 64))]}
    first, other = kept.generate("a fox", **asked), usual.generate("a fox", **asked)
    assert first.image.tobytes() != other.image.tobytes()
    settings = kept.jobs("a fox", **asked)[0].settings
    (count,) = {branch.references.tokens.shape[1] for branch in kept._branches.values()}
    more = kept.family.reference_tokens(Prompt("", (PICTURE.resize((64, 64)),)), settings)
    assert (more.image, more.prefix) == (0, count) and count == 16
    assert usual.family.reference_tokens(Prompt("", (PICTURE.resize((64, 64)),)), settings).image == count


def test_kept_references_are_planned() -> None:
    """9B with a picture of a million pixels: 2.1 GB of keys and values, and steps as short as without it."""
    prompt = Prompt("", (Image.new("RGB", (1024, 1024)),))
    made = {}
    for model in ("flux2-klein-9b", "flux2-klein-9b-kv"):
        with shape_only_folder(manifests()[model]) as folder:
            family = open_family(manifests()[model], folder, WeightTransforms())
            settings = ask(model).settings
            made[model] = plan(family, settings, True, prompt), plan(family, settings, True)
    (usual, alone), (kept, kept_alone) = made.values()
    assert alone == kept_alone
    added = kept.stages[1].working_bytes - kept_alone.stages[1].working_bytes
    joined = 1  # a block's keys and values, next to the picture's
    assert added == 4096 * (32 + joined) * 2 * 4096 * 2
    assert alone.step_flops < kept.step_flops < 1.15 * alone.step_flops < usual.step_flops


def test_folding_is_refused_with_its_reason() -> None:
    family = load(DATA / "klein").family
    with pytest.raises(QuantizationError, match="--fold does not apply to FLUX.2: all blocks share their modulation"):
        family.fold(ask("flux2-klein-4b").settings)


def test_dev_s_guidance_changes_the_picture_and_klein_s_tables_do_not_see_it() -> None:
    dev = open_pipeline(DATA / "dev")
    low, high = (dev.generate("a fox", guidance=guidance, **SMALL).image for guidance in (1.0, 8.0))
    assert low.tobytes() != high.tobytes()


@pytest.mark.parametrize("file", ["flux1/kohya", "flux1/aitoolkit", "qwen_image/lightning", "hidream_o1/musubi"])
def test_loras_of_other_families_are_refused(file: str) -> None:
    path = DATA.parent / "lora" / file / "lora.safetensors"
    with pytest.raises(LoraError, match="LoRA for (FLUX.1|Qwen-Image|HiDream-O1-Image)"):
        load(DATA / "klein", lora=[path])


def test_a_lora_of_flux2_is_refused_elsewhere() -> None:
    path = DATA.parent / "lora/flux2/kohya/lora.safetensors"
    for folder in ("flux/dev", "qwen_image/image", "hidream_o1"):
        with pytest.raises(LoraError, match="looks like a LoRA for FLUX.2"):
            load(DATA.parent / folder, lora=[path])


def test_a_cut_prompt_is_reported() -> None:
    result = open_pipeline(DATA / "klein").generate("fox, 狐狸 " * 100, guidance=1.0, **SMALL)
    assert any("longer than 48 tokens; cut off" in note for note in result.report.notes)
