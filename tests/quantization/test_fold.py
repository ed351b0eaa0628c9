"""Folding: a checkpoint without modulation weights draws what the whole one draws, and refuses what it cannot."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, LoraError, MismatchError, QuantizationError, RequestError
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.modulation import tabulate as flux_tables
from mlx_imagegen.families.qwen_image.family import QwenImage
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators, Tables, tabulate, unfold
from mlx_imagegen.hub.record import RECORD
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import layers, own_parameters
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.quantization import convert
from mlx_imagegen.quantization.conversion_plan import plan_conversion
from mlx_imagegen.quantization.quantizer import quantize
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import DATA, check_picture, open_pipeline, options_of, picture
from tests.quantization.test_convert import digest, run_and_kill
from tests.tiny import draw_flux

ROOT = Path(__file__).parents[2]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
STEPS, SIZE = 4, (80, 32)  # of the stored draws' pictures
SMALL = {"seed": 3, "steps": STEPS, "width": SIZE[0], "height": SIZE[1]}
MODULES = ("time_text_embed.timestep_embedder.linear_2", "transformer_blocks.0.img_mod.1", "norm_out.linear")
FLOAT32 = 2e-6  # a float32 sum of some hundred terms against a float64 one, relative to the largest


def leave_as_stored(folder: Path) -> str:
    """A recipe that leaves every weight as it is."""
    path = folder / "as-stored.toml"
    path.write_text('bits = 16\nkeep = ["transformer", "text_encoder", "vae"]\n[[qwen_image]]\nmatch = "*"\n')
    return str(path)


def check_folded(folder: Path, way: str, made: Path) -> None:
    """diffusers' own picture, at most one level off, as the whole checkpoint's is."""
    options = options_of(folder)
    size = options["width"], options["height"]
    quantize(folder, made, quant=leave_as_stored(made.parent), fold=options["steps"], fold_size=size)
    check_picture(folder, way, open_pipeline(made))
    assert np.abs(picture(folder, way, open_pipeline(made)) - picture(folder, way)).max() <= 1


@pytest.fixture
def as_stored(tmp_path: Path) -> str:
    return leave_as_stored(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "image", tmp_path / "source")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """On modulation and on attention."""
    weights = mx.load(str(DATA / "image" / WEIGHTS))
    tensors = {}
    for index, module in enumerate((*MODULES, "transformer_blocks.1.attn.to_q")):
        rows, columns = weights[f"{module}.weight"].shape
        keys = mx.random.split(mx.random.key(index))
        tensors[f"transformer.{module}.lora_A.weight"] = mx.random.normal((2, columns), key=keys[0]) * 0.3
        tensors[f"transformer.{module}.lora_B.weight"] = mx.random.normal((rows, 2), key=keys[1]) * 0.3
    mx.save_safetensors(str(tmp_path / "style.safetensors"), tensors)
    return tmp_path / "style.safetensors"


def both_tables(folder: Path, made: Path) -> tuple[Tables, Tables]:
    """What the whole checkpoint's weights give, and what the folded one holds."""
    whole, folded = (load(each).family for each in (folder, made))
    assert isinstance(whole, QwenImage) and isinstance(folded, QwenImage) and folded.files.folded
    schedule = folded.schedule(load(made).jobs("a cat", **SMALL, **references(folder))[0].settings)
    columns = folded.files.folded.columns(schedule.timesteps)
    assert columns is not None
    config, fill = folded.files.config, folded.files.transformer.fill
    return (
        tabulate(config, whole.files.transformer.fill, schedule.timesteps, mx.float32),
        unfold(config, fill, columns, folded.files.columns, mx.float32),
    )


def references(folder: Path) -> dict[str, Any]:
    return {} if options_of(folder)["kind"] == "image" else {"references": [folder / "picture1.png"]}


@pytest.mark.parametrize(("kind", "way"), [("image", "cfg"), ("image", "image"), ("edit", "cfg"), ("zero", "two")])
def test_a_folded_checkpoint_draws_the_references_picture(kind: str, way: str, tmp_path: Path) -> None:
    check_folded(DATA / kind, way, tmp_path / "made")


@pytest.mark.parametrize("kind", ["image", "zero"])
def test_tables_are_what_the_weights_give(kind: str, tmp_path: Path) -> None:
    """Of full precision, whatever the rest is packed to."""
    made = quantize(DATA / kind, tmp_path / "made", quant="q4", fold=STEPS, fold_size=SIZE)
    whole, folded = both_tables(DATA / kind, made)
    assert whole.keys() == folded.keys()
    for name, ours in folded.items():
        theirs = np.array(whole[name])
        assert ours.shape == theirs.shape
        assert np.abs(np.array(ours) - theirs).max() < FLOAT32 * np.abs(theirs).max(), name
    steps = np.array(folded["img"])
    assert all(np.abs(steps[i] - steps[j]).max() > 1e-3 for i in range(STEPS) for j in range(i))


def test_the_weights_are_gone_and_the_tables_small(source: Path, tmp_path: Path, as_stored: str) -> None:
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=STEPS)
    before, after = (open_checkpoint(folder / "transformer") for folder in (source, made))
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    assert {name.rpartition(".")[0] for name in new} == {
        f"transformer_blocks.{i}.{part}_mod.1" for i in range(2) for part in ("img", "txt")
    } | {"norm_out.linear"}
    assert all(name.startswith("time_text_embed.") or "_mod.1." in name or "norm_out." in name for name in gone)
    rows = sum(before[name].shape[0] for name in gone if name.endswith("bias") and "embed" not in name)
    assert sum(after[name].nbytes for name in new) == rows * STEPS * 4
    for name in after.keys() & before.keys():
        assert (after[name].bytes() == before[name].bytes()).all(), name
    record = read_json(made / RECORD)
    assert record["folded"] == {"steps": STEPS, "size": [1328, 1328]}  # the model's own, as no size was given


def test_loading_stays_strict(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "made", quant="q8", fold=STEPS)
    tensors, config = dict(mx.load(str(made / WEIGHTS))), read_json(made / "transformer/config.json")
    mx.eval(tensors)
    name = "transformer_blocks.1.txt_mod.1.table"

    def refused(change: dict[str, Any], message: str) -> None:
        kept = {key: value for key, value in (tensors | change).items() if value is not None}
        mx.save_safetensors(str(made / WEIGHTS), kept)
        with pytest.raises(MismatchError, match=message):
            load(made)

    refused({name: None}, f"1 missing: {name}")
    refused({name: tensors[name][:, 1:]}, "1 misshapen")
    refused({"norm_out.linear.weight": mx.zeros((48, 24))}, "1 unexpected: norm_out.linear.weight")
    mx.save_safetensors(str(made / WEIGHTS), tensors)
    path = made / "transformer/config.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "mlx_imagegen"}))
    with pytest.raises(MismatchError, match="missing"):
        load(made)
    for block in ({"folded": {"steps": 4}}, {}, "4 steps", {"folded": {"steps": 4, "size": None, "timesteps": "abcd"}}):
        path.write_text(json.dumps(config | {"mlx_imagegen": block}))
        with pytest.raises(ConfigError, match="damaged"):
            load(made)


def test_other_steps_and_sizes_are_refused_before_anything_is_loaded(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "made", quant="q8", fold=STEPS, fold_size=SIZE)
    pipeline = load(made)
    for change in ({"steps": STEPS + 1}, {"width": 96}):
        with pytest.raises(RequestError) as refused:
            pipeline.generate("a cat", **SMALL | change)
        size = f"{change.get('width', SIZE[0])}x{SIZE[1]}"
        words = f"--quant q8 --fold {change.get('steps', STEPS)} --fold-size {size} -o FOLDER"
        assert f"4 steps at {SIZE[0]}x{SIZE[1]}" in str(refused.value) and words in str(refused.value)
        assert f"--model {source}" in str(refused.value)
    with pytest.raises(RequestError, match="Leave shift out"):
        pipeline.generate("a cat", **SMALL | {"shift": 3.0})
    assert not any(component.loaded for component in pipeline.family.components.values())
    turned = SMALL | {"width": SIZE[1], "height": SIZE[0]}  # as many tokens: the same schedule
    result = pipeline.generate("a cat", **turned)
    assert result.report.choices["modulation"].startswith("from the checkpoint, folded for 4 steps at 80x32")


def test_a_constant_shift_is_for_every_size(source: Path, tmp_path: Path, as_stored: str) -> None:
    """As Lightning has it: both ends of the line are the same."""
    path = source / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text()) | {"base_shift": 1.0986, "max_shift": 1.0986, "shift_terminal": None}
    path.write_text(json.dumps(config))
    with pytest.raises(QuantizationError, match="same for every size"):
        quantize(source, tmp_path / "made", quant=as_stored, fold=8, fold_size=SIZE)
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=8)
    assert read_json(made / RECORD)["folded"] == {"steps": 8, "size": None}
    # 4 evenly spaced steps fall on every second one of the 8.
    for change in ({"steps": 8, "width": 32}, {"steps": 8, "width": 64, "height": 96}, {"steps": 4}):
        asked = SMALL | change
        whole, folded = (np.array(load(each).generate("a cat", **asked).image).astype(int) for each in (source, made))
        assert np.abs(whole - folded).max() <= 1
    with pytest.raises(RequestError, match=r"8 steps at any size .* --fold 3 -o"):
        load(made).generate("a cat", **SMALL | {"steps": 3})


def test_the_folder_knows_its_own_defaults(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "made", quant="q8", fold=3, fold_size=(64, 48))
    settings = load(made).jobs("a cat", seed=1)[0].settings
    assert (settings.steps, settings.width, settings.height) == (3, 64, 48)


def test_cut_off_and_run_again_it_goes_on(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    run_and_kill(source, target, 40, fold=4)
    assert not target.exists()
    calls: list[int] = []
    quantize(source, target, quant="q4", fold=4, on_progress=lambda *call: calls.append(call[1]))
    total = sum(len(each.pieces) for each in plan_conversion(source, "q4", fold=4).layouts)
    assert total - 42 <= len(calls) <= total - 40
    assert digest(target) == digest(quantize(source, tmp_path / "whole", quant="q4", fold=4))
    with pytest.raises(QuantizationError, match="other files or by another recipe"):
        quantize(source, target, quant="q4", fold=5)


def test_numbers_of_rows_and_threads_do_not_show(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quantize(source, tmp_path / "first", quant="q4", fold=4, workers=1)
    monkeypatch.setattr(convert, "CHUNK", 99)
    assert digest(quantize(source, tmp_path / "second", quant="q4", fold=4, workers=3)) == digest(first)


def test_a_lora_is_folded_in(source: Path, tmp_path: Path, as_stored: str, lora: Path) -> None:
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=STEPS, fold_size=SIZE, lora=[(lora, 0.5)])
    merged = quantize(source, tmp_path / "merged", quant=as_stored, lora=[(lora, 0.5)])
    for ours, theirs in zip(*(tables.values() for tables in both_tables(merged, made)), strict=True):
        assert mx.max(mx.abs(ours - theirs)) < FLOAT32 * mx.max(mx.abs(theirs))
    plain, folded = both_tables(source, made)
    assert mx.max(mx.abs(plain["txt"] - folded["txt"])) > 1e-3  # by the embedder alone


@pytest.mark.parametrize("before", [False, True])
def test_a_lora_on_a_folded_folder_is_read_from_its_source(
    source: Path, tmp_path: Path, as_stored: str, lora: Path, before: bool
) -> None:
    other = shutil.copyfile(lora, tmp_path / "other.safetensors")
    first = [(lora, 0.25)] if before else []
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=STEPS, fold_size=SIZE, lora=first)
    ours = load(made, lora=[(other, 0.5)]).generate("a cat", **SMALL)
    theirs = load(source, lora=[*first, (other, 0.5)]).generate("a cat", **SMALL)
    plain = load(made).generate("a cat", **SMALL)
    pictures = [np.array(each.image).astype(int) for each in (ours, theirs, plain)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 < np.abs(pictures[0] - pictures[2]).max()
    assert ours.report.choices["modulation"] == "from the source's weights, kept for the next run"
    assert not any("did not use" in note for note in ours.report.notes)
    again = load(made, lora=[(other, 0.5)]).generate("a cat", **SMALL)
    assert again.report.choices["modulation"] == "from cache"
    assert (np.array(again.image) == pictures[0]).all()


def test_without_the_source_a_lora_on_modulation_is_refused(
    source: Path, tmp_path: Path, as_stored: str, lora: Path
) -> None:
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=STEPS, fold_size=SIZE)
    shutil.rmtree(source)
    with pytest.raises(LoraError) as refused:
        load(made, lora=[lora])
    assert f"--fold 4 --fold-size 80x32 --lora {lora}:1" in str(refused.value)
    attention = {key: value for key, value in mx.load(str(lora)).items() if ".attn." in key}
    mx.save_safetensors(str(tmp_path / "attention.safetensors"), attention)
    load(made, lora=[tmp_path / "attention.safetensors"])  # those weights are still here


def test_the_plan_says_what_is_written(source: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    planned = cli("quantize", "--model", source, "--bits", 8, "--fold", STEPS, "--plan")
    assert planned.code == 0 and "a table of 4 columns, f32" in planned.out
    assert "note: transformer: folded for 4 steps at 1328x1328 or another size of as many pixels, and" in planned.out
    made = plan_conversion(source, "q8", fold=STEPS)
    done = cli("quantize", "--model", source, "--bits", 8, "--fold", STEPS, "-o", tmp_path / "made")
    assert done.code == 0
    files = list((tmp_path / "made").rglob("*.safetensors"))
    stored = [path for path in files if path.parent.name in ("transformer", "text_encoder", "vae")]
    assert sum(path.stat().st_size for path in stored) == made.nbytes
    opened = load(tmp_path / "made")
    planned_bytes = plan(opened.family, opened.jobs("a cat", seed=1)[0].settings, gpu=True).disk_bytes
    assert 0 <= made.nbytes - planned_bytes < 50_000  # headers
    whole = plan(load(source).family, opened.jobs("a cat", seed=1)[0].settings, gpu=True)
    assert planned_bytes < whole.disk_bytes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--fold-size", "64x64"], "goes with --fold STEPS"),
        (["--fold", "0"], "steps 0"),
        (["--fold", "4", "--fold-size", "64x50"], "multiple of 16"),
    ],
)
def test_bad_requests(source: Path, cli: Callable[..., Any], asked: list[str], message: str) -> None:
    done = cli("quantize", "--model", source, "--bits", 8, "-o", "made", *asked)
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize(("name", "reason"), [("flux/dev", "the prompt"), ("hidream_o1", "no modulation layers")])
def test_families_whose_modulation_cannot_be_folded(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=reason):
        quantize(drawn_data() / name, tmp_path / "made", quant="q8", fold=4)


@pytest.mark.parametrize("fold", [None, STEPS])
def test_a_folded_folder_is_not_quantized_again(source: Path, tmp_path: Path, as_stored: str, fold: int | None) -> None:
    made = quantize(source, tmp_path / "made", quant=as_stored, fold=STEPS)
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize(made, tmp_path / "again", quant="q8", fold=fold)


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_modulation_weights_pass_through_memory_one_by_one(name: str, tmp_path: Path) -> None:
    """Neither after the tables are made nor while: the most that stands there is far from all of them."""
    family = load(draw_flux(tmp_path / "flux") if name == "flux" else DATA / "image").family
    files, times = family.files, (900.0, 300.0)  # type: ignore[attr-defined]
    config, fill = files.config, files.transformer.fill
    tree: Any = (FluxModulators if name == "flux" else QwenImageModulators)(config)
    whole = sum(value.size * 4 for _, layer in layers(tree) for value in own_parameters(layer).values())
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    if name == "flux":
        tables: Any = flux_tables(config, fill, times, 3.5, [mx.zeros((1, config.pooled_projection_dim))], mx.float32)
    else:
        tables = tabulate(config, fill, times, mx.float32)
    peak = mx.get_peak_memory() - before
    gc.collect()
    left = mx.get_active_memory() - before
    held = sum(value.nbytes for _, value in tree_flatten(tables) if value is not None)
    assert left < held + 0.1 * whole and peak < held + 0.6 * whole, (name, left / whole, held / whole, peak / whole)
