"""Kept modulation tables: the same picture without reading the weights, and never for other weights or schedules."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.cache import cache_folder
from mlx_imagegen.families.qwen_image import family
from mlx_imagegen.families.qwen_image.editing import Editing
from mlx_imagegen.pipeline import Pipeline
from tests.draw import drawn_data

DATA = drawn_data() / "qwen_image"
PICTURE = {"seed": 3, "steps": 2, "width": 32, "height": 48}
CACHE, WEIGHTS = "from cache", "from the weights, kept for the next run"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mlx_imagegen.cache.sys.platform", "linux")
    yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "image", tmp_path / "model")


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    def make(*modules: str, seed: int = 0) -> Path:
        weights = mx.load(str(DATA / "image" / TRANSFORMER))
        tensors = {}
        for index, module in enumerate(modules):
            rows, columns = weights[f"{module}.weight"].shape
            keys = mx.random.split(mx.random.key(seed + index))
            tensors[f"transformer.{module}.lora_A.weight"] = mx.random.normal((2, columns), key=keys[0]) * 0.3
            tensors[f"transformer.{module}.lora_B.weight"] = mx.random.normal((rows, 2), key=keys[1]) * 0.3
        path = tmp_path / f"{'-'.join(modules)}-{seed}.safetensors"
        mx.save_safetensors(str(path), tensors)
        return path

    return make


def drawn(pipeline: Pipeline, **changes: Any) -> tuple[np.ndarray, str]:
    result = pipeline.generate("a cat", **PICTURE | changes)
    return np.array(result.image), result.report.choices["modulation"]


@pytest.mark.parametrize("kind", ["image", "zero"])
def test_the_second_run_reads_no_weights_and_draws_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"references": [DATA / kind / "picture1.png"]} if kind == "zero" else {}
    monkeypatch.setattr(Editing, "for_latents", lambda self, picture: picture.resize((32, 48)))  # 1024x1024 takes long
    first, read = drawn(load(DATA / kind), **given)
    monkeypatch.setattr(family, "tabulate", lambda *_: pytest.fail("the weights were read"))
    second, kept = drawn(load(DATA / kind), **given)
    assert (read, kept) == (WEIGHTS, CACHE) and (first == second).all()
    assert len(list((cache_folder() / "modulation").iterdir())) == 1


def test_another_prompt_seed_and_guidance_take_the_same_tables(model: Path) -> None:
    drawn(load(model))
    result = load(model).generate("a dog", **PICTURE | {"seed": 9, "guidance": 2.5})
    assert result.report.choices["modulation"] == CACHE


@pytest.mark.parametrize("change", ["steps", "size", "weights", "quant", "lora", "embedder"])
def test_whatever_changes_the_tables_is_in_their_key(model: Path, lora: Callable[..., Path], change: str) -> None:
    drawn(load(model))
    opening, request = {}, {}
    if change == "steps":
        request = {"steps": 3}
    elif change == "size":
        request = {"width": 64}
    elif change == "weights":
        path = model / TRANSFORMER
        arrays = mx.load(str(path))
        arrays["norm_out.linear.bias"] = arrays["norm_out.linear.bias"] + 1
        mx.eval(arrays)
        mx.save_safetensors(str(path), arrays)
    elif change == "quant":
        opening = {"quant": "q8"}  # here: only rounds to 16 bits, since the draw is narrow
    else:
        module = "transformer_blocks.1.txt_mod.1" if change == "lora" else "time_text_embed.timestep_embedder.linear_2"
        opening = {"lora": [lora(module)]}
    fresh, read = drawn(load(model, **opening), **request)
    assert read == WEIGHTS
    again, kept = drawn(load(model, **opening), **request)
    assert kept == CACHE and (again == fresh).all()


def test_a_lora_and_its_scale_count_only_where_they_touch(model: Path, lora: Callable[..., Path]) -> None:
    drawn(load(model))
    elsewhere = lora("transformer_blocks.0.attn.to_q")
    assert drawn(load(model, lora=[elsewhere]))[1] == CACHE
    here = lora("transformer_blocks.0.img_mod.1")
    pictures = [drawn(load(model, lora=[(here, scale)])) for scale in (1.0, 0.5, 1.0, 0.0)]
    assert [said for _, said in pictures] == [WEIGHTS, WEIGHTS, CACHE, CACHE]
    assert (pictures[0][0] == pictures[2][0]).all() and (pictures[0][0] != pictures[1][0]).any()


def test_kept_tables_count_as_using_the_lora(model: Path, lora: Callable[..., Path]) -> None:
    here = lora("transformer_blocks.0.img_mod.1")
    notes = [load(model, lora=[here]).generate("a cat", **PICTURE).report.notes for _ in range(2)]
    assert notes[0] == notes[1] and not any("did not use" in note for note in notes[1])


def test_a_damaged_file_is_made_again(model: Path) -> None:
    first, _ = drawn(load(model))
    (path,) = (cache_folder() / "modulation").iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 64]))
    assert drawn(load(model))[1] == WEIGHTS and path.read_bytes() == data
    second, said = drawn(load(model))
    assert said == CACHE and (first == second).all()


def test_without_a_place_for_it_the_report_says_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    said = drawn(load(model))[1]
    assert said.startswith("from the weights, ") and "cannot be written" in said


def test_the_checkpoint_is_not_written_to(model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    drawn(load(model))
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before
