"""The converter's sources and outputs: in shards, damaged, exchanged or gone while they are read; links; what is
refused before a byte is downloaded."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import (
    CheckpointError,
    ImagegenError,
    LoraError,
    MissingFileError,
    OutputError,
    QuantizationError,
    RequestError,
)
from mlx_imagegen.hub import download
from mlx_imagegen.hub.record import RECORD
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.quantization import conversion_plan, partial, quantizer
from mlx_imagegen.quantization.conversion_plan import plan_conversion
from mlx_imagegen.quantization.partial import Partial
from mlx_imagegen.quantization.quantizer import quantize
from tests.conftest import DATA
from tests.lora.test_pipeline import draw_lora
from tests.quantization.test_convert import check_equal, digest, parameters
from tests.tiny import WEIGHTS, draw_flux, save_fp8, to_original


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw_flux(tmp_path / "source")


def cut_into_shards(folder: Path, index: str, variant: str = "") -> None:
    """Three files; each tensor in another than the one before it."""
    tensors = dict(mx.load(str(folder / WEIGHTS)))
    mx.eval(tensors)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for number in range(3):
        name = f"diffusion_pytorch_model{variant}-{number + 1:05}-of-00003.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::3]}
        mx.save_safetensors(str(folder / "transformer" / name), part)
        weight_map |= dict.fromkeys(part, name)
    (folder / "transformer" / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("ending", "variant"), [("index.json", ""), ("index.fp16.json", ".fp16")])
def test_a_source_in_shards(source: Path, tmp_path: Path, ending: str, variant: str) -> None:
    whole = quantize(source, tmp_path / "whole", quant="q4")
    cut_into_shards(source, f"diffusion_pytorch_model.safetensors.{ending}", variant)
    made = quantize(source, tmp_path / "made", quant="q4")
    names = {path.name for path in (made / "transformer").iterdir()}
    assert names == {"config.json", f"diffusion_pytorch_model{variant}.safetensors"}  # small enough for one file
    ours, theirs = (open_checkpoint(folder / "transformer") for folder in (made, whole))
    assert ours.keys() == theirs.keys()
    assert all((tensor.bytes() == theirs[name].bytes()).all() for name, tensor in ours.items())
    load(made)


def test_a_source_that_is_exchanged_and_put_back(source: Path, tmp_path: Path) -> None:
    """With its old time and place it looks as if nothing had been: what was read meanwhile must not count as done."""
    other, mine, target = draw_flux(tmp_path / "other", seed=1), tmp_path / "mine", tmp_path / "made"
    calls: list[Any] = []

    def exchange(*call: Any) -> None:
        calls.append(call)
        if len(calls) == 120:
            (source / WEIGHTS).rename(mine)
            shutil.copyfile(other / WEIGHTS, tmp_path / "aside")
            (tmp_path / "aside").rename(source / WEIGHTS)

    with pytest.raises(CheckpointError, match="changed while it was read"):
        quantize(source, target, quant="q4", workers=1, on_progress=exchange)
    mine.rename(source / WEIGHTS)
    quantize(source, target, quant="q4")
    assert digest(target) == digest(quantize(source, tmp_path / "whole", quant="q4"))


def test_a_source_that_changes_after_its_last_row(source: Path, tmp_path: Path) -> None:
    def touch(component: str, done: int, total: int) -> None:
        if done == total:
            os.utime(source / WEIGHTS)

    with pytest.raises(CheckpointError, match="changed while it was read"):
        quantize(source, tmp_path / "made", quant="q4", on_progress=touch)
    assert not (tmp_path / "made").exists()


def test_a_link_in_a_circle_is_not_followed(source: Path, tmp_path: Path) -> None:
    expected = set(digest(quantize(source, tmp_path / "plain", quant="q4")))
    (source / "vae" / "above").symlink_to("..")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("x")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    assert set(digest(quantize(source, tmp_path / "made", quant="q4"))) == expected | {"linked/notes.txt"}


def test_a_source_that_goes_away(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="went away"):
        quantize(source, tmp_path / "made", quant="q4", on_progress=lambda *_: shutil.rmtree(source, True))
    assert not (tmp_path / "made").exists()


def test_a_weight_that_is_no_number_is_named(source: Path, tmp_path: Path) -> None:
    tensors, name = dict(mx.load(str(source / WEIGHTS))), "transformer_blocks.1.attn.to_k.weight"
    values = np.array(tensors[name].astype(mx.float32))
    values[3, 5] = np.nan
    mx.eval(tensors)
    mx.save_safetensors(str(source / WEIGHTS), tensors | {name: mx.array(values).astype(mx.bfloat16)})
    named = rf"{WEIGHTS}, '{name}': .* not finite"
    with pytest.raises(QuantizationError, match=named):
        quantize(source, tmp_path / "made", quant="q4")
    with pytest.raises(QuantizationError, match=named):
        parameters(load(source, quant="q4"))


def test_the_room_is_that_of_what_is_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = plan_conversion(source, "q4").nbytes
    for free, fits in ((need, False), (2 * need, True)):  # configs and tokenizers come on top
        usage = shutil._ntuple_diskusage(10**12, 0, partial.SPARE_BYTES + free)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            quantize(source, tmp_path / "made", quant="q4")
            continue
        with pytest.raises(OutputError, match="Free some room"):
            quantize(source, tmp_path / "made", quant="q4")


def test_the_sources_revision_is_recorded(tmp_path: Path) -> None:
    """As the hub's cache has it: a snapshot's folder is called by its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    made = quantize(draw_flux(tmp_path / commit), tmp_path / "made", quant="q8")
    record = read_json(made / RECORD)
    assert record["revision"] == commit and set(record["bits_per_weight"]) == {"transformer"}


def test_smaller_groups_and_unpacked_weights_are_said(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "wide.toml"
    recipe.write_text("bits = 4\ngroup_size = 128\n[[flux1]]\nmatch = '*'\n")
    notes = plan_conversion(source, str(recipe)).notes
    assert any(note.startswith("transformer: 64 columns are not a multiple of 128: groups of 64 (") for note in notes)
    assert any(": kept at 16 bits (" in note and "more)" in note for note in notes)


def test_fp8_with_a_scale_a_row_in_the_original_single_file(source: Path, tmp_path: Path) -> None:
    """Fused linears and swapped halves: each row of ours keeps the scale that it has in the file."""
    to_original(source)
    path = source / "flux1-tiny.safetensors"
    tensors = dict(mx.load(str(path)))
    for name, value in list(tensors.items()):
        if value.ndim == 2:
            scale = mx.max(mx.abs(value.astype(mx.float32)), axis=1, keepdims=True) / 448
            tensors[name] = mx.to_fp8(value.astype(mx.float32) / scale)
            tensors[name.replace("weight", "scale_weight")] = scale
    mx.eval(tensors)
    save_fp8(path, tensors)
    check_equal(source, quantize(source, tmp_path / "made", quant="q8"), "q8")


def test_a_source_that_changes_while_the_pictures_for_calibration_are_drawn(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = draw_flux(tmp_path / "other", seed=1)

    def drawing(*_: Any) -> dict[Any, Any]:
        shutil.copyfile(other / WEIGHTS, source / WEIGHTS)
        return {}

    monkeypatch.setattr(quantizer, "_collect", drawing)
    asked = {"prompt": "a cat", "width": 64, "height": 48, "steps": 1}
    with pytest.raises(CheckpointError, match="changed while it was read"):
        quantize(source, tmp_path / "made", quant="q4", calibrate=[asked])
    assert not (tmp_path / "made").exists()


def test_another_lora_scale_or_calibration_is_another_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "_collect", lambda *_: {})  # what was learnt does not matter here
    monkeypatch.setattr(quantizer, "load", lambda *_, **__: None)
    lora, module = tmp_path / "style.safetensors", "transformer.transformer_blocks.0.attn.to_q"
    mx.save_safetensors(
        str(lora), {f"{module}.lora_A.weight": mx.ones((2, 64)), f"{module}.lora_B.weight": mx.ones((64, 2))}
    )
    picture = {"prompt": "a cat", "width": 64, "height": 48, "steps": 1}
    changes: list[dict[str, Any]] = [
        {}, {"lora": [lora]}, {"lora": [(lora, 0.5)]},
        {"calibrate": [picture]}, {"calibrate": [picture | {"steps": 2}]},
    ]  # fmt: skip
    for index, made_with in enumerate(changes):
        made = quantize(source, tmp_path / str(index), quant="q4", **made_with)
        for asked in changes:
            if asked is made_with:
                quantize(source, made, quant="q4", on_progress=lambda *_: pytest.fail("it is there"), **asked)
                continue
            with pytest.raises(QuantizationError, match="from other files or by another recipe"):
                quantize(source, made, quant="q4", **asked)


@pytest.mark.parametrize("model", ["flux-dev", "black-forest-labs/FLUX.1-dev"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--quant", "q9", "-o", "made"], "no recipe is called 'q9'"),
        (["--bits", 4, "-o", "deep/er/made"], "is not a folder; make it first"),
        (["--bits", 4, "-o", "mine"], "was not made by quantize"),
        (["--bits", 4, "--fold", 4, "-o", "made"], "FLUX.1: its modulation depends on the prompt"),
    ],
)
def test_nothing_is_downloaded_for_what_is_refused(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, model: str, asked: list[Any], message: str
) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    monkeypatch.setattr(conversion_plan, "files_of", lambda *_: pytest.fail("went for the files"))
    monkeypatch.setattr(download, "local_folder", lambda *_: None)
    done = cli("quantize", "--model", model, *asked)
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize("how", [["-o", "made"], ["--plan"]])
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("stile", "there is no LoRA file"),
        (DATA / "lora/flux1/kohya/lora", "expected [9216, 3072]"),
        (DATA / "lora/qwen_image/lightning/lora", "looks like a LoRA for Qwen-Image"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_before_a_download_and_by_a_plan(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lora: str | Path, message: str, how: list[str]
) -> None:
    monkeypatch.setattr(conversion_plan, "files_of", lambda *_: pytest.fail("went for the files"))
    monkeypatch.setattr(download, "local_folder", lambda *_: None)
    done = cli("quantize", "--model", "flux-dev", "--bits", 4, "--lora", f"{lora}.safetensors", *how)
    assert done.code == 2 and message in done.err and not done.out
    if how != ["--plan"]:
        with pytest.raises(ImagegenError, match=re.escape(message)):
            quantize("flux-dev", "made", quant="q4", lora=[f"{lora}.safetensors"])


def test_how_much_of_a_lora_matches_is_said(source: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    style = draw_lora(tmp_path / "style.safetensors", source, 1, part="to_q")
    tensors = dict(mx.load(str(style)))
    mx.eval(tensors)
    count = len(tensors) // 2
    more = {f"transformer.unheard.of.lora_{end}.weight": mx.ones((2, 2)) for end in "AB"}
    mx.save_safetensors(str(style), tensors | more)
    told = f"note: LoRA {style} at 0.5: {count} of {count + 1} modules match"
    asked = ["quantize", "--model", source, "--bits", 8, "--lora", f"{style}:0.5", "--lora-partial"]
    planned, done = cli(*asked, "--plan"), cli(*asked, "-o", tmp_path / "made")
    assert planned.code == 0 and told in planned.out
    assert done.code == 0 and told in done.err
    other = draw_lora(tmp_path / "other.safetensors", source, 2, part="to_q")
    plain = quantize(source, tmp_path / "plain", quant="q8")
    shutil.rmtree(source)  # the command for a new folder must not be refused for what was allowed
    for folder, options in ((tmp_path / "made", {"lora": [other]}), (plain, {"lora": [style], "lora_partial": True})):
        with pytest.raises(LoraError, match="mlx-imagegen quantize .* --lora-partial"):
            load(folder, **options)


def test_small_sizes_are_told_in_small_units(source: Path, cli: Callable[..., Any]) -> None:
    planned = cli("quantize", "--model", source, "--bits", 4, "--plan")
    assert re.search(r"in all: [0-9.]*[1-9][0-9.]* MB on disk", planned.out)
    assert not re.search(r" 0\.0+ GB", planned.out.partition("\n\n")[0])


def test_ctrl_c_says_that_it_can_go_on(
    source: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Partial, "seal", interrupt)
    asked = ["quantize", "--model", source, "--bits", 8, "-o", tmp_path / "made"]
    stopped = cli(*asked)
    assert stopped.code == 130 and f"{tmp_path / 'made'}.partial" in stopped.err and "goes on from there" in stopped.err
    monkeypatch.setattr(quantizer, "convert", interrupt)
    assert "goes on from there" not in cli(*asked[:-1], tmp_path / "other").err


def test_a_plan_needs_headers_alone(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(conversion_plan, "files_of", lambda *_: pytest.fail("went for the files"))
    done = cli("quantize", "--model", "qwen-image-lightning", "--bits", 4, "--fold", 8, "--plan")
    assert done.code == 0 and "by its published shapes; its files are not here" in done.out
    assert "transformer/transformer_blocks.{0-59}.attn.to_v" in done.out and "a table of 8 columns, f32" in done.out
    assert "in all: " in done.out and "peak, one stage at a time: " in done.out


def test_the_output_may_be_a_link(source: Path, tmp_path: Path) -> None:
    for name in ("there", "to be"):
        (tmp_path / f"link {name}").symlink_to(tmp_path / name)
    (tmp_path / "there").mkdir()
    for name in ("there", "to be"):
        load(quantize(source, tmp_path / f"link {name}", quant="q8"))
        assert (tmp_path / f"link {name}").is_symlink() and (tmp_path / name / RECORD).is_file()
    with pytest.raises(QuantizationError, match="/ is there already and was not made by quantize"):
        quantize(source, "/", quant="q8")


@pytest.mark.parametrize("size", [(64,), 64, "64x64"])
def test_a_size_to_fold_for_is_two_numbers(source: Path, tmp_path: Path, size: Any) -> None:
    with pytest.raises(QuantizationError, match="give a width and a height"):
        quantize(source, tmp_path / "made", quant="q8", fold=4, fold_size=size)


def test_a_lora_on_a_folder_by_a_recipe_of_ones_own_is_packed_by_it(source: Path, tmp_path: Path) -> None:
    recipe, lora = tmp_path / "mine.toml", tmp_path / "style.safetensors"
    recipe.write_text("bits = 4\nsearch = true\n[[flux1]]\nmatch = '*'\n")
    module = "transformer_blocks.0.attn.to_q"
    down, up = (mx.random.normal(shape, key=mx.random.key(shape[0])) for shape in ((2, 64), (64, 2)))
    mx.save_safetensors(
        str(lora), {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up * 0.1}
    )
    made = quantize(source, tmp_path / "made", quant=str(recipe))
    merged = quantize(source, tmp_path / "merged", quant=str(recipe), lora=[lora])
    ours, theirs = (
        dict(pipeline.family.components["transformer"].loaded_layers())[module]
        for pipeline in (load(made, lora=[lora]), load(merged))
    )
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ("weight", "scales", "biases"))


def test_all_is_on_the_disk_before_the_record_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the renaming finds no holes."""
    flushed, fsync, target = set(), os.fsync, tmp_path / "made"

    def noted(file: int) -> None:
        fsync(file)
        assert not (tmp_path / "made.partial" / RECORD).exists() and not target.exists()
        flushed.add(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    quantize(source, target, quant="q4")
    written = {path.stat().st_ino for path in target.rglob("*") if path.is_file() and path.name != RECORD}
    assert written <= flushed


def test_a_tensor_is_on_the_disk_before_the_journal_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut before the end leaves a journal whose every line is true."""
    events, fsync, finish = [], os.fsync, partial.Journal.finish
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), events.append("disk"))[0])
    monkeypatch.setattr(partial.Journal, "finish", lambda self, key: (events.append("journal"), finish(self, key))[1])
    quantize(source, tmp_path / "made", quant="q4", workers=1)
    places = [place for place, event in enumerate(events) if event == "journal"]
    assert len(places) > 100 and all(events[place - 1] == "disk" for place in places)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=["bfloat16", "float16", "float32"])
def test_a_merged_lora_is_the_same_saved_and_in_memory(tmp_path: Path, dtype: mx.Dtype) -> None:
    """In packed weights, in a weight that stays dense, and in biases; one file, and several that add up."""
    source, lora, tensors = draw_flux(tmp_path / "source", dtype=dtype), tmp_path / "style.safetensors", {}
    stored = mx.load(str(source / WEIGHTS))
    for index, module in enumerate(("x_embedder", "transformer_blocks.1.attn.to_q", "norm_out.linear")):
        (rows, columns), keys = stored[f"{module}.weight"].shape, mx.random.split(mx.random.key(index), 3)
        tensors[f"transformer.{module}.lora_A.weight"] = mx.random.normal((4, columns), key=keys[0]) * 0.1
        tensors[f"transformer.{module}.lora_B.weight"] = mx.random.normal((rows, 4), key=keys[1]) * 0.1
        tensors[f"transformer.{module}.diff_b"] = mx.random.normal((rows,), key=keys[2]) * 0.01
    mx.save_safetensors(str(lora), tensors)
    plain = parameters(load(source, quant="q4"))
    for chosen in ([lora], [(lora, 0.3), (lora, -0.7), (lora, 1.1)]):
        made = load(quantize(source, tmp_path / f"made of {len(chosen)}", quant="q4", lora=chosen))
        ours, theirs = parameters(made), parameters(load(source, quant="q4", lora=chosen))
        assert [name for name in ours if not mx.array_equal(ours[name], theirs[name])] == []
        assert len([name for name in ours if not mx.array_equal(ours[name], plain[name])]) >= 3 + 2  # biases, weights


def test_a_recipe_drops_nothing_that_is_needed(source: Path, tmp_path: Path) -> None:
    """Else the folder would not load."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text("bits = 4\ndrop = 'transformer/proj_out.*'\n[[flux1]]\nmatch = '*'")
    with pytest.raises(QuantizationError, match=r"mine.* drops 'transformer/proj_out\.\w+'.*cannot draw"):
        quantize(source, tmp_path / "made", quant=str(recipe))


@pytest.mark.parametrize("asked", [{"workers": 0}, {"workers": "2"}, {"workers": True}, {"lora_partial": "no"}])
def test_parameters_of_another_kind(source: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    (name,) = asked
    with pytest.raises(RequestError, match=name):
        quantize(source, tmp_path / "made", **asked)


def test_all_cores_are_used_if_nothing_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(quantizer, "convert", lambda conversion, partial, workers, progress: asked.append(workers))
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    quantize(source, tmp_path / "made", quant="q8")
    quantize(source, tmp_path / "made", quant="q8", workers=1)
    assert asked == [6, 1]
