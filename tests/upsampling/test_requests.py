"""`upsample` and what asks for it: refusals, records, memory, and the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_imagegen
from mlx_imagegen import load, quantize
from mlx_imagegen import pipeline as pipeline_module
from mlx_imagegen.cli import main
from mlx_imagegen.errors import (
    ConfigError,
    InsufficientMemoryError,
    MismatchError,
    MissingFileError,
    QuantizationError,
    RequestError,
)
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.image import read_metadata
from mlx_imagegen.machine import GB, MemoryLimit
from mlx_imagegen.planning import fitting
from mlx_imagegen.request.job import resolve
from mlx_imagegen.upsampling import upsampler as upsampler_module
from mlx_imagegen.upsampling.api import open_upsampler, upsample
from mlx_imagegen.upsampling.upsampler import Upsampler
from tests.families.flux3.test_flux3 import DATA as MODELS
from tests.families.flux3.test_flux3 import open_pipeline
from tests.upsampling.test_upsampler import DRAWN, cases, converted, edited, shown

PUP = DRAWN / "pup"
SIZE = {"width": 32, "height": 32, "steps": 2, "seed": 3}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampler_module, "MOST_TOKENS", 8)


def test_a_caption_stands_in_the_record_and_makes_the_picture_again() -> None:
    pipeline = open_pipeline(MODELS / "klein")
    counts: list[int] = []
    pipeline.on_token = counts.append
    result = pipeline.generate("a cat", upsample=str(PUP), **SIZE)
    caption = upsample("a cat", model=PUP)
    assert result.record["prompt"] == caption and result.record["upsampled_from"] == "a cat"
    assert "upsample" not in result.record and counts == list(range(1, 9))
    assert result.report.as_dict()["seconds"]["upsample"] > 0
    again = pipeline.generate(caption, **SIZE)
    assert np.array_equal(np.asarray(again.image), np.asarray(result.image))
    assert "upsampled_from" not in again.record and "upsample" not in again.report.as_dict()["seconds"]
    plain = pipeline.generate("a cat", **SIZE)
    assert not np.array_equal(np.asarray(plain.image), np.asarray(result.image))


def test_several_seeds_share_a_caption_and_edits_show_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def write(self: Upsampler, request: str, references: Any, **_: Any) -> str:
        asked.append((request, len(references)))
        return f"a picture: {request}"

    monkeypatch.setattr(Upsampler, "write", write)
    pipeline = open_pipeline(MODELS / "klein")
    pictures = shown(DRAWN, {"pictures": [0, 1]})
    first, second = pipeline.generate(
        "make it red", upsample=str(PUP), references=pictures, **(SIZE | {"seed": [1, 2]})
    )
    assert asked == [("make it red", 2)]
    assert first.record["prompt"] == second.record["prompt"] == "a picture: make it red"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Upsampler]:
    """Those that a pipeline opens, in their order."""
    found: list[Upsampler] = []

    def open_it(*given: Any, **named: Any) -> Upsampler:
        found.append(open_upsampler(*given, **named))
        return found[-1]

    monkeypatch.setattr(pipeline_module, "open_upsampler", open_it)
    return found


def test_an_upsampler_is_loaded_once_for_several_prompts_and_let_go(opened: list[Upsampler]) -> None:
    loads: list[str] = []
    pipeline = load(MODELS / "klein", on_load=lambda name, done, total: loads.append(name) if done == total else None)
    size = SIZE | {"steps": 1}
    first, second = pipeline.generate(["a cat", "a dog"], upsample=str(PUP), **size)
    assert loads.count("prompt_upsampler") == 1 and len(opened) == 1 and not opened[0].model.loaded
    assert first.record["prompt"] == upsample("a cat", model=PUP)
    assert second.record["prompt"] == upsample("a dog", model=PUP)
    for said, error, expected in (
        ("stop", KeyboardInterrupt, KeyboardInterrupt),
        ("Unable to allocate 9 bytes", RuntimeError, InsufficientMemoryError),
    ):

        def stop(count: int, said: str = said, error: type[BaseException] = error) -> None:
            raise error(said)

        pipeline.on_token = stop
        with pytest.raises(expected):
            pipeline.generate("a fox", upsample=str(PUP), **size)
        assert not opened[-1].model.loaded


def test_what_does_not_fit_is_refused_before_a_caption_is_written(
    opened: list[Upsampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_pipeline(MODELS / "klein")
    monkeypatch.setattr(fitting, "memory_limit", lambda: MemoryLimit(10, 10, 10, False))
    monkeypatch.setattr(fitting, "_largest", lambda most_bytes: "")  # judges all models
    with pytest.raises(InsufficientMemoryError, match="stage alone"):
        pipeline.generate("a cat", upsample=str(PUP), **SIZE)
    assert not opened


def test_an_upsampler_is_packed_as_the_model_is(
    opened: list[Upsampler], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is packed already stays as it is."""
    folder = quantize(MODELS / "klein", tmp_path / "model", quant="q8")
    packed = load(folder)
    packed.generate("a cat", upsample=str(PUP), **SIZE)
    assert opened[0].model.held_as.startswith("8-bit")
    packed.generate("a cat", upsample=str(converted(tmp_path, 4)), **SIZE)
    assert opened[1].model.held_as.startswith("4-bit")
    assert main(["plan", "--model", str(folder), "--chip", "m2", "--upsample", "flux3-pup"]) == 0
    assert "upsample: 9." in capsys.readouterr().out  # of 8 bits; q4 takes 5


def test_others_are_refused_before_anything_is_opened() -> None:
    for name, asked, said in (
        ("flux-schnell", True, "flux-schnell has no prompt upsampler"),
        ("flux3-klein", "flux3-pub", "neither a folder nor a prompt upsampler's name"),
        ("flux3-klein", 3, "upsample 3: give true, or a name"),
    ):
        with pytest.raises(RequestError, match=said):
            resolve(manifests()[name], 16, "a cat", 1, upsample=asked)
    assert resolve(manifests()["flux3-klein"], 16, "a cat", 1, upsample=True)[0].upsampler == "flux3-pup"
    assert resolve(manifests()["flux3-klein"], 16, "a cat", 1, upsample=False)[0].upsampler is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": 3}, "give text"),
        ({"prompt": "a <|image_pad|>"}, "stands for pictures"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"references": ["/nowhere.png"]}, "nowhere.png"),
        ({"references": [np.zeros((2, 900, 3), np.uint8)]}, "too narrow"),
        ({"references": [np.zeros((9, 9, 3), np.uint8)] * 11}, "up to 10"),
        ({"references": np.zeros((2, 900, 3), np.uint8)}, "too narrow"),
        ({"on_token": 3}, "on_token is 3: give a function"),
        ({"on_load": 3}, "on_load is 3: give a function"),
        ({"boxes": {}}, "give a list of boxes"),
        ({"boxes": []}, "give a list of boxes"),
        ({"boxes": ["cat"]}, "box 1 is 'cat'"),
        ({"boxes": [{"box": [0, 0, 1, 1]}]}, "box 1"),
        ({"boxes": [{"desc": "a cat"}]}, "has no place"),
        ({"boxes": [{"bbox": [0, 0, 1]}]}, r"its bbox is \[0, 0, 1\]"),
        ({"boxes": [{"bbox": [0, 0, 500, 500]}]}, "from 0 to 1"),
        ({"boxes": [{"bbox": [0.5, 0, 0.2, 1]}]}, "y_min"),
        ({"boxes": [{"bbox": [0, 0, float("nan"), 1]}]}, "from 0 to 1"),
        ({"boxes": [{"bbox": [0, 0, 10**400, 1]}]}, "from 0 to 1"),
        ({"boxes": [{"bbox": []}]}, r"its bbox is \[\]"),
        ({"boxes": [{"bbox": np.zeros(4)}]}, r"its bbox is array"),
        ({"boxes": [{"bbox": [0, 0, 1, 1], "desc": np.zeros(2)}]}, r"its desc is array"),
        ({"boxes": [{"bbox": [0, 0, 1, 1], "id": 3}]}, "its id is 3"),
        ({"boxes": [{"bbox": [0, 0, 1, 1], "id": "a"}] * 2}, "two have the id 'a'"),
    ],
)
def test_bad_requests_are_refused_with_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises((RequestError, MissingFileError), match=said):
        upsample(**({"prompt": "a cat", "model": PUP} | given))


def test_missing_prompts_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text for 'i2i_bbox'"):
        open_upsampler(edited(tmp_path, "system_prompts.json", i2i_bbox=None), None)
    (tmp_path / "pup" / "system_prompts.json").unlink()
    with pytest.raises(MissingFileError, match="hf download black-forest-labs/flux-3-image-klein-pup system_prompts"):
        open_upsampler(tmp_path / "pup", None)


def test_other_configs_are_refused(tmp_path: Path) -> None:
    text = json.loads((PUP / "config.json").read_text())["text_config"]
    for number, (changes, said) in enumerate(
        [
            ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
            ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
            ({"model_type": "qwen3"}, "'model_type' is 'qwen3'"),
            ({"rope_parameters": text["rope_parameters"] | {"mrope_section": [1, 1, 1]}}, "mrope_section"),
            ({"tie_word_embeddings": True}, "tie_word_embeddings"),
            ({"new": 1}, "'new'"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        with pytest.raises(ConfigError, match=said):
            open_upsampler(edited(place, "config.json", text_config=text | changes), None)
    (tmp_path / "deep").mkdir()
    with pytest.raises(MismatchError, match="missing"):
        open_upsampler(edited(tmp_path / "deep", "config.json", text_config=text | {"attention_bias": True}), None)


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, said in ((10, "With quant q8 it would fit"), (6, "With quant q4"), (2, "No quant of it fits")):
        limit = MemoryLimit(int(most * GB), int(most * GB), int(16 * GB), True)
        monkeypatch.setattr(upsampler_module, "memory_limit", lambda limit=limit: limit)
        with pytest.raises(InsufficientMemoryError, match=f"needs 31.8 GB, and this machine's GPU .*{said}"):
            upsample("a cat")


def test_packed_conversions_load_and_are_not_packed_again(tmp_path: Path) -> None:
    folder = converted(tmp_path, 8)
    found = open_upsampler(folder, None)
    assert found.weights.stored and found.write("a cat")
    with pytest.raises(QuantizationError, match="quantized already"):
        open_upsampler(folder, "q8")


def test_a_recipe_packs_it_while_it_is_loaded() -> None:
    found = open_upsampler(PUP, "q8")
    assert found.model.held_as.startswith("8-bit")
    assert found.write("a cat")


def test_the_command_prints_the_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(cases(DRAWN)["questions"][4]["boxes"]))
    command = ["upsample", "two cats", "--model", str(PUP), "--max-tokens", "5"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "note: the caption was cut off at 5 tokens" in err
    assert out.strip() == upsample("two cats", model=PUP, max_tokens=5).strip()
    capsys.readouterr()
    assert main([*command, "--boxes", str(boxes)]) == 0
    assert '"id": "cat_1", "bbox": [100, 200, 510, 800]' in capsys.readouterr().out
    boxes.write_text("[")
    assert main([*command, "--boxes", str(boxes)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_the_plan_names_it_and_a_record_leads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "flux3-klein", "--quant", "q4", "--chip", "m2", "--upsample", "flux3-pup"]) == 0
    assert "upsample: 5." in capsys.readouterr().out
    picture = tmp_path / "a.png"
    drawn = ["--model", str(MODELS / "klein"), "--steps", "1", "--size", "32", "--no-report", "-o"]
    assert main(["generate", "a cat", "--upsample", str(PUP), *drawn, str(picture)]) == 0
    assert read_metadata(picture)["upsampled_from"] == "a cat"
    assert main(["generate", "--from", str(picture), *drawn, str(tmp_path / "b.png")]) == 0
    assert read_metadata(tmp_path / "b.png")["prompt"] == read_metadata(picture)["prompt"]


def test_it_is_a_public_name() -> None:
    assert mlx_imagegen.upsample is upsample
