"""Calibration from the user's side: which pictures are learnt from, and what is refused before they are drawn."""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load, pipeline
from mlx_imagegen.commands import quantize as command
from mlx_imagegen.errors import InsufficientMemoryError, MissingFileError, OutputError, RequestError
from mlx_imagegen.hub import download
from mlx_imagegen.hub.manifest import Model, manifests
from mlx_imagegen.hub.record import RECORD
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.products import Product
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.quantization import conversion_plan, partial, quantizer
from mlx_imagegen.quantization.calibrate import Statistics
from mlx_imagegen.quantization.calibration_set import calibration_jobs
from mlx_imagegen.quantization.conversion_plan import plan_conversion
from mlx_imagegen.quantization.convert import Conversion
from mlx_imagegen.quantization.quantizer import quantize
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import open_pipeline
from tests.lora.test_pipeline import draw_lora
from tests.tiny import draw_flux

DATA = drawn_data()
EDIT = DATA / "qwen_image/edit"
SMALL = {"width": 64, "height": 48, "steps": 1}
NO_STEP: Any = lambda _: pytest.fail("a picture was drawn")  # noqa: E731


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw_flux(tmp_path / "source")


@pytest.fixture
def editing(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny editing model, which looks at pictures of a few thousand pixels."""
    found = open_pipeline(EDIT).model
    assert found.manifest.extras["references_least"] == 1
    for module in (pipeline, conversion_plan):
        monkeypatch.setattr(module, "identify", lambda *_: found)
    return EDIT


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Conversion]:
    """What the converter is given, noted as it works."""
    given: list[Conversion] = []

    def convert(conversion: Conversion, *rest: Any) -> bool:
        given.append(conversion)
        return quantizer_convert(conversion, *rest)

    quantizer_convert = quantizer.convert
    monkeypatch.setattr(quantizer, "convert", convert)
    return given


def statistics(conversion: Conversion, path: str) -> Statistics:
    return conversion.statistics["transformer", path]


def test_prompts_and_mappings_are_jobs() -> None:
    asked = ["a cat", {"prompt": "a dog", "steps": 3, "seed": [4, 5], "width": 512}]
    jobs = calibration_jobs(manifests()["flux-dev"], 16, asked)
    assert [(job.prompt.text, job.seed, job.settings.steps, job.settings.width) for job in jobs] == [
        ("a cat", 0, 28, 1024), ("a dog", 4, 3, 512), ("a dog", 5, 3, 512)
    ]  # fmt: skip


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one prompt": ("a cat", RequestError, "'a cat': give a list"),
    "what can be read but once": (iter(["a cat"]), RequestError, "give a list"),
    "nothing": (None, RequestError, "calibrate None: give a list"),
    "one mapping": ({"prompt": "a cat"}, RequestError, "give a list"),
    "a number": ([5], RequestError, "calibrate 5: give a prompt"),
    "no prompt": ([{"steps": 3}], RequestError, "give a prompt, or a mapping with a prompt"),
    "an empty prompt": (["  "], RequestError, "the prompt is empty"),
    "another kind": ([{"prompt": "a cat", "steps": "3"}], RequestError, "calibrate, 'a cat': steps '3'"),
    "a slip": ([{"prompt": "a cat", "step": 3}], RequestError, "no parameter 'step'; did you mean steps"),
    "a size": ([{"prompt": "a cat", "width": 100}], RequestError, "calibrate, 'a cat': width 100"),
    "references": ([{"prompt": "a cat", "references": ["a.png"]}], RequestError, "takes none"),
    "a picture": ([{"prompt": "a cat", "image": "nowhere.png"}], MissingFileError, "nowhere.png is not there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused(case: str, source: Path, tmp_path: Path) -> None:
    asked, kind, words = REFUSED[case]
    with pytest.raises(kind, match=re.escape(words)):
        quantize(source, tmp_path / "made", quant="q4", calibrate=asked, on_step=NO_STEP)
    assert not list(tmp_path.glob("made*"))


def test_refusals_name_only_what_quantize_has(editing: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """An editing model with bare prompts."""
    Path("prompts.txt").write_text("make it snow\n")
    done = cli("quantize", "--model", editing, "--bits", 4, "-o", tmp_path / "made", "--calibrate", "prompts.txt")
    parser = argparse.ArgumentParser()
    command.flags(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert done.code == 2 and set(re.findall(r"--[\w-]+", done.err)) <= flags
    line = re.search(r"\{.*?\}", done.err)
    assert line and "changes pictures, and none is given" in done.err
    # What it says helps.
    shutil.copy(EDIT / "picture1.png", "photo.png")
    Path("jobs.jsonl").write_text(json.dumps(json.loads(line[0]) | {"width": 80, "height": 32}))
    asked = ("--calibrate", "jobs.jsonl", "--steps", 1, "-o", tmp_path / "made")
    done = cli("quantize", "--model", editing, "--bits", 4, *asked)
    assert done.code == 0, done.err


def test_an_editing_model_learns_from_its_references(editing: Path, tmp_path: Path, seen: list[Conversion]) -> None:
    asked = {"prompt": "make it snow", "references": [editing / "picture1.png"], "width": 80, "height": 32, "steps": 2}
    made = quantize(editing, tmp_path / "made", quant="q4", calibrate=[asked])
    job = open_pipeline(editing).jobs(**(asked | {"seed": 0}))[0]
    tokens = 5 * 2 + open_pipeline(editing).family.reference_tokens(job.prompt, job.settings).image
    branches = 1 if job.negative is None else 2
    found = statistics(seen[0], "transformer_blocks.1.img_mlp.net.2")
    assert tokens > 10 and found.count == 2 * branches * tokens
    known = read_json(made / RECORD)["calibrated_with"][0]
    assert len(known["references_sha256"]) == 1 and known["steps"] == 2
    plain = quantize(editing, tmp_path / "plain", quant="q4")
    ours, theirs = (open_checkpoint(folder / "transformer") for folder in (made, plain))
    name = "transformer_blocks.1.img_mlp.net.2.weight"
    assert (ours[name].bytes() != theirs[name].bytes()).any()
    other = asked | {"references": [editing / "picture2.png"]}
    identities = [draft_record(editing, [each])["calibrated_with"] for each in (asked, other)]
    assert identities[0] == [known] != identities[1]


def draft_record(folder: Path, asked: list[Any]) -> dict[str, Any]:
    made = plan_conversion(folder, "q4", calibrate=asked)
    return json.loads(json.dumps(quantizer._record(made)))


def test_hidream_learns_from_references(tmp_path: Path, seen: list[Conversion]) -> None:
    source = DATA / "hidream_o1"
    plain = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1}
    for number, asked in enumerate((plain, plain | {"references": [source / "ref0.png"]})):
        quantize(source, tmp_path / f"made{number}", quant="q4", calibrate=[asked])
    alone, edited = (statistics(each, "model.language_model.layers.1.self_attn.q_proj").count for each in seen)
    assert edited > alone > 0


def test_a_line_is_over_the_flags(source: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    jobs = [{"prompt": "a fox", "steps": 2, "seed": 4}, {"prompt": "a hen", "width": 32}]
    text = "\n".join(["an owl", "", *map(json.dumps, jobs)])
    Path("jobs.jsonl").write_text(text)
    flags = ("--calibrate", "jobs.jsonl", "--steps", 1, "--size", "64x48")
    done = cli("quantize", "--model", source, "--bits", 4, "-o", tmp_path / "made", *flags)
    assert done.code == 0 and "calibration: 4 steps of 3 pictures in full precision" in done.err
    known = read_json(tmp_path / "made" / RECORD)["calibrated_with"]
    assert [(each["prompt"], each["seed"], each["steps"], each["width"], each["height"]) for each in known] == [
        ("an owl", 0, 1, 64, 48), ("a fox", 4, 2, 64, 48), ("a hen", 0, 1, 32, 48)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n \n", "given holds no prompt; write one on each line"),
        ('a cat\n{"prompt": "b", "step": 2}', "given, line 2: a job has no 'step'; did you mean steps"),
        ("a cat\n{no", "given, line 2: not valid JSON"),
        ('\ufeff{"prompt": "b", "step": 2}', "given, line 1: a job has no 'step'"),
        ("\x00\x01\ud800", "--calibrate: given cannot be read as UTF-8 text"),
    ],
)
def test_bad_files(source: Path, tmp_path: Path, cli: Callable[..., Any], text: str, words: str) -> None:
    Path("given").write_text(text, encoding="utf-8", errors="surrogatepass")
    done = cli("quantize", "--model", source, "--bits", 4, "-o", tmp_path / "made", "--calibrate", "given")
    assert done.code == 2 and words in done.err and not list(tmp_path.glob("made*"))


def test_what_would_change_nothing_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "sixteen.toml"
    recipe.write_text('bits = 16\nkeep = ["vae"]\n[[hidream_o1]]\nmatch = "*"\n')
    with pytest.raises(RequestError, match="it would change nothing"):
        quantize(DATA / "hidream_o1", tmp_path / "made", quant=str(recipe), calibrate=["a cat"], on_step=NO_STEP)


def test_memory_is_reckoned_and_refused(
    source: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, seen: list[Conversion]
) -> None:
    asked = [{"prompt": "a cat", **SMALL}, {"prompt": "a cat", **SMALL, "width": 256, "height": 256}]
    small, large = (plan_conversion(source, "q4", calibrate=[each]).calibration_cost for each in asked)
    assert small and large and small.statistics_bytes == large.statistics_bytes and small.peak_bytes < large.peak_bytes
    assert small.least_bytes == large.least_bytes < small.peak_bytes
    eight = plan_conversion(source, "q8", calibrate=asked[:1]).calibration_cost
    assert eight and small.peak_bytes - eight.peak_bytes == small.statistics_bytes - eight.statistics_bytes > 0
    quantize(source, tmp_path / "plain", quant="q4", calibrate=asked[:1])
    assert small.statistics_bytes == sum(each.nbytes for each in seen[0].statistics.values())
    Path("given.jsonl").write_text(json.dumps(asked[1]))
    plan = ("quantize", "--model", source, "--bits", 4, "--plan", "--calibrate", "given.jsonl")
    assert str(large) in cli(*plan).out and "calibrate: flux-dev" not in cli(*plan).out
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: small.peak_bytes)
    assert "calibrate: flux-dev in full precision takes" in cli(*plan).out
    with pytest.raises(
        InsufficientMemoryError, match=r"Give the pictures a smaller width and height, or calibrate on .* without"
    ):
        quantize(source, tmp_path / "made", quant="q4", calibrate=asked, on_step=NO_STEP)
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: small.least_bytes - 1)
    with pytest.raises(InsufficientMemoryError, match=r"GB\. Calibrate on a machine with more memory"):
        quantize(source, tmp_path / "made", quant="q4", calibrate=asked[:1], on_step=NO_STEP)
    assert not list(tmp_path.glob("made*"))
    quantize(source, tmp_path / "made", quant="q4")  # as the refusal says


# Columns of the layers that are packed, times 4 bytes, times a block's 512 columns and the sum.
DOUBLE = 10 * 3072 + 2 * 12288  # q, k, v, out and the first of the MLP, for the picture and for the prompt
PUBLISHED = {
    "flux-dev": 19 * DOUBLE + 38 * (4 * 3072 + 15360),
    "qwen-image": 60 * DOUBLE,
    "hidream-o1": 32 * (6 * 4096 + 12288),  # without the four layers that q4 leaves at 8 bits, and without a bias
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_models_take(name: str) -> None:
    with shape_only_folder(manifests()[name]) as folder:
        model = Model(manifests()[name], None, name)
        takes = conversion_plan.plan_from_folder(model, folder, "q4", None, None, ["a cat"]).calibration_cost
    assert takes and takes.statistics_bytes == PUBLISHED[name] * 4 * 513


def test_nothing_is_downloaded_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_plan, "files_of", lambda *_: pytest.fail("went for the files"))
    monkeypatch.setattr(download, "local_folder", lambda _: None)
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 20 * 10**9)
    with pytest.raises(InsufficientMemoryError, match="calibrate: flux-dev"):
        plan_conversion("flux-dev", "q4", calibrate=["a cat"])
    with pytest.raises(RequestError, match="changes pictures, and none is given"):
        plan_conversion("qwen-image-edit-2511", "q4", calibrate=["a cat"])


def test_loras_are_learnt_with(source: Path, tmp_path: Path, seen: list[Conversion]) -> None:
    draw_lora(tmp_path / "style.safetensors", source, 1)
    path = "single_transformer_blocks.1.proj_out"
    for number, lora in enumerate(([], [tmp_path / "style.safetensors"])):
        asked = [{"prompt": "a cat", **SMALL}]
        quantize(source, tmp_path / f"made{number}", quant="q4", calibrate=asked, lora=lora)
    without, ours = (statistics(each, path).mean for each in seen)
    inputs: list[np.ndarray] = []

    class Listening(Linear):
        def product_of_parts(self, *parts: mx.array) -> Product:
            x = mx.concatenate(list(parts), axis=-1)
            inputs.append(np.array(x).reshape(-1, x.shape[-1]))
            return super().product_of_parts(*parts)

    warm = load(source, lora=[tmp_path / "style.safetensors"])
    warm.family.components["transformer"].load().single_transformer_blocks[1].proj_out.__class__ = Listening
    warm.generate("a cat", seed=0, **SMALL)
    theirs = np.concatenate(inputs).mean(axis=0)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max() < 1e-2 * np.abs(without - theirs).max()


def test_a_folded_copy_learns_from_its_own_schedule(tmp_path: Path, seen: list[Conversion]) -> None:
    source = DATA / "qwen_image/image"
    planned = plan_conversion(source, "q4", fold=3, fold_size=(80, 32), calibrate=["a cat"])
    assert [job.settings.steps for job in planned.calibration_jobs] == [3]
    made = quantize(source, tmp_path / "made", quant="q4", fold=3, fold_size=(80, 32), calibrate=["a cat"])
    known = read_json(made / RECORD)
    assert [(each["steps"], each["width"], each["height"]) for each in known["calibrated_with"]] == [(3, 80, 32)]
    assert statistics(seen[0], "transformer_blocks.1.img_mlp.net.2").count % (3 * 5 * 2) == 0
    assert load(made).generate("a cat", seed=1).image.size == (80, 32)
    again = ["--fold", "3", "--fold-size", "80x32", "--calibrate", "FILE"]
    with pytest.raises(RequestError, match=" ".join([again[0], "4", *again[2:]])):
        load(made).generate("a cat", steps=4)


def test_interrupted_while_drawing_nothing_is_left(source: Path, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    asked = [{"prompt": "a cat", **SMALL}]
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "made", quant="q4", calibrate=asked, on_step=stop)
    assert not list(tmp_path.glob("made*"))
    assert quantize(source, tmp_path / "made", quant="q4", calibrate=asked) == tmp_path / "made"


def test_a_full_disk_is_told_before_anything_is_drawn(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**12, 0, partial.SPARE_BYTES + 9)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="Free some room"):
        quantize(source, tmp_path / "made", quant="q4", calibrate=["a cat"], on_step=NO_STEP)


def test_what_lacks_only_its_name_is_not_learnt_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"prompt": "a cat", **SMALL}]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(partial.Partial, "rename", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        quantize(source, tmp_path / "made", quant="q4", calibrate=asked)
    load(quantize(source, tmp_path / "made", quant="q4", calibrate=asked, on_step=NO_STEP))
