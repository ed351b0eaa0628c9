"""What users ask of FLUX.3: sizes, schedules, guidance, references, LoRAs; and what is refused."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import LoraError, QuantizationError, RequestError
from mlx_imagegen.families.flux3.transformer import Flux3Transformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.job import Job, resolve
from tests.families.flux3.test_flux3 import DATA, open_pipeline

PICTURE = Image.new("RGB", (300, 200), "red")
SMALL: dict[str, Any] = {"seed": 1, "steps": 2, "width": 32, "height": 32}


def ask(model: str, **parameters: Any) -> Job:
    return resolve(manifests()[model], 16, "a fox", 1, **parameters)[0]


@pytest.mark.parametrize("side", [256, 1024, 2048])
def test_the_shift_is_the_same_at_every_size(side: int) -> None:
    schedule = open_pipeline(DATA / "klein").family.schedule(ask("flux3-klein", width=side, steps=4).settings)
    even = np.linspace(1, 0.25, 4)
    assert np.allclose(schedule.sigmas, [*(6.93 * even / (1 + 5.93 * even)), 0])


def test_the_manifests_defaults() -> None:
    klein, base = ask("flux3-klein"), ask("flux3-klein-base")
    assert (klein.settings.steps, klein.settings.cfg, klein.negative) == (16, 1.0, None)
    assert (base.settings.steps, base.settings.cfg, base.negative and base.negative.text) == (50, 3.5, "")


@pytest.mark.parametrize("knob", ["guidance", "true_cfg"])
def test_a_second_branch_is_refused_where_the_model_is_distilled(knob: str) -> None:
    with pytest.raises(RequestError, match="flux3-klein is distilled to run without a second branch"):
        ask("flux3-klein", **{knob: 3.5})


def test_sizes_that_are_no_multiples() -> None:
    with pytest.raises(RequestError, match="height 1000: flux3-klein needs a multiple of 16 pixels"):
        ask("flux3-klein", height=1000)


def test_a_picture_keeps_its_one_reference_s_size() -> None:
    """Made on whole tokens around it, and cut back; not where a size is given, nor for several references."""
    alone = ask("flux3-klein", references=[PICTURE])
    assert (alone.settings.width, alone.settings.height, alone.crop) == (304, 208, (2, 4, 302, 204))
    record = alone.record("never")
    assert "width" not in record and "height" not in record  # they follow from the reference again
    given = ask("flux3-klein", references=[PICTURE], width=512, height=256)
    assert (given.settings.width, given.crop) == (512, None) and given.record("never")["width"] == 512
    several = ask("flux3-klein", references=[PICTURE, PICTURE])
    assert (several.settings.width, several.settings.height, several.crop) == (288, 192, None)
    result = load(DATA / "klein").generate("a fox", seed=1, steps=1, references=[PICTURE.resize((70, 66))])
    assert result.image.size == (70, 66)


def test_too_many_references() -> None:
    with pytest.raises(RequestError, match="11 pictures are given, flux3-klein takes up to 10"):
        ask("flux3-klein", references=[PICTURE] * 11)


@pytest.mark.parametrize(("kind", "runs"), [("klein", 2), ("base", 1)])
def test_text_and_references_run_once_where_no_step_changes_them(
    kind: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    run = Flux3Transformer.states

    def states(self: Flux3Transformer, which: str, *given: Any) -> Any:
        seen.append(which)
        return run(self, which, *given)

    monkeypatch.setattr(Flux3Transformer, "states", states)
    branches = 1 if kind == "klein" else 2
    load(DATA / kind).generate("a fox", references=[PICTURE], **SMALL)
    assert (seen.count("image"), seen.count("txt")) == (2 * branches, runs * branches)
    assert seen.count("image_cond") == (2 if kind == "klein" else 1)


def test_folding_is_refused_with_its_reason() -> None:
    with pytest.raises(QuantizationError, match="--fold does not apply to FLUX.3: all blocks share their modulation"):
        load(DATA / "klein").family.fold(ask("flux3-klein").settings)


@pytest.mark.parametrize("file", ["flux1/kohya", "flux2/aitoolkit", "flux2/peft", "qwen_image/lightning"])
def test_loras_of_other_families_are_refused(file: str) -> None:
    with pytest.raises(LoraError, match="LoRA for (FLUX.1|FLUX.2|Qwen-Image)"):
        load(DATA / "klein", lora=[DATA.parent / "lora" / file / "lora.safetensors"])


def test_a_cut_prompt_is_reported() -> None:
    result = open_pipeline(DATA / "klein").generate("fox, 狐狸 " * 100, **SMALL)
    assert any("longer than 160 tokens; cut off" in note for note in result.report.notes)
