"""HiDream-O1 against a stored tiny model and what transformers and diffusers made of it
(tests/references/hidream.py)."""

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
from mlx.utils import tree_flatten
from PIL import Image

from mlx_imagegen import pipeline
from mlx_imagegen.errors import ConfigError, MismatchError, RequestError
from mlx_imagegen.families.base import Prompt
from mlx_imagegen.families.hidream_o1 import family as hidream
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.random import TorchGenerator
from mlx_imagegen.sampling import timesteps_schedule
from mlx_imagegen.vision.qwen3 import encode_patches
from tests.draw import drawn_data
from tests.families.hidream_o1.checks import check_forward, check_loop, opened, settings

DATA = drawn_data() / "hidream_o1"
PROMPT, SIZE = "A red fox, reading.", (32, 24)
LOOPS = {"unipc": 0, "flash": 0, "1ref_flow_match": 1}
NO_SIGHT = """
import sys
from mlx_imagegen.pipeline import load
load({folder!r}).generate("a fox", width=32, height=24, steps=2, seed=1)
assert not [name for name in sys.modules if name.startswith(("mlx_vlm", "transformers", "torch"))]
"""


def references(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(folder / f"ref{index}.png").convert("RGB") for index in range(count)]


def reconfigured(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The stored model without what was recorded of it, and with another config.json."""
    for path in DATA.iterdir():
        if path.suffix == ".json" or path.name == "model.safetensors":
            shutil.copy(path, folder)
    config = json.loads((DATA / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def check_draw(folder: Path) -> None:
    check_forward(folder, mx.load(str(folder / "forward_t2i.safetensors")), PROMPT, SIZE)
    check_forward(folder, mx.load(str(folder / "forward_1ref.safetensors")), PROMPT, SIZE, references(folder, 1))
    for name, count in LOOPS.items():
        check_loop(folder, folder / f"loop_{name}.safetensors", references(folder, count))


@pytest.mark.parametrize(("name", "count"), [("t2i", 0), ("1ref", 1)])
def test_forward(name: str, count: int) -> None:
    check_forward(DATA, mx.load(str(DATA / f"forward_{name}.safetensors")), PROMPT, SIZE, references(DATA, count))


@pytest.mark.parametrize(("name", "count"), LOOPS.items())
def test_loop(name: str, count: int) -> None:
    check_loop(DATA, DATA / f"loop_{name}.safetensors", references(DATA, count))


def test_deepstack_features_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ports leave them out: then x_pred is another."""
    family = opened(DATA)
    monkeypatch.setattr(hidream, "encode_patches", lambda *given: encode_patches(*given)._replace(deepstack=[]))
    want = mx.load(str(DATA / "forward_1ref.safetensors"))

    branch, _ = family.encode(Prompt(PROMPT, tuple(references(DATA, 1))), settings(*SIZE))
    (ready,) = family.denoiser([branch], timesteps_schedule([999.0]), settings(*SIZE)).branches
    picture = family.components["transformer"].load()(want["t0.z"], 999.0, ready.rope, ready.prefix, ready.references)
    assert float(mx.max(mx.abs(picture - want["t0.x_pred"]))) > 0.01


def test_text_to_image_never_imports_or_loads_the_eyes() -> None:
    subprocess.run([sys.executable, "-c", NO_SIGHT.format(folder=str(DATA))], check=True, capture_output=True)


def test_resident_parts() -> None:
    """Neither lm_head, nor the vision tower, nor the table of embeddings."""

    transformer = opened(DATA).components["transformer"].load()
    names = [name for name, _ in tree_flatten(transformer.parameters())]
    held = ("language_model.layers.", "language_model.norm.", "t_embedder1.", "x_embedder.", "final_layer2.")
    assert names and all(name.startswith(held) for name in names)


def test_a_seed_is_upstreams() -> None:
    """Upstream draws with seed + 1."""
    family = opened(DATA)
    want = TorchGenerator(8).normal((1, 3, 24, 32))
    assert (np.array(family.stream(7).randn(family.shape(settings(*SIZE)))) == want).all()


def test_flash_has_a_stream_of_its_own() -> None:
    """Not the starting noise again, not the same at every step, the same for a seed."""
    draws = []
    for seed in (3, 3, 4):
        result = pipeline.load(DATA).generate(
            PROMPT, width=32, height=24, sampler="flash", timesteps=[900, 600, 300], seed=seed
        )
        draws.append(np.asarray(result.image).astype(int))
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "flow_match"},
        {"shift": 1.0},
        {"noise_scale": 7.0},
        {"timesteps": [900, 500, 100]},
        {"sampler": "flash", "noise_clip": 0.5},
        {"guidance": 1.0},
        {"blend_seams": 1},
    ],
    ids=str,
)
def test_every_parameter_changes_the_picture(change: dict[str, object]) -> None:
    warm = pipeline.load(DATA)
    base = {"width": 32, "height": 24, "steps": 3, "seed": 5}
    if "noise_clip" in change:
        base |= {"sampler": "flash"}
    first, second = (warm.generate(PROMPT, **(base | extra)) for extra in ({}, change))
    assert (np.asarray(first.image) != np.asarray(second.image)).any()
    for name, value in change.items():
        told = second.record[name]
        assert told == value or tuple(np.ravel(told)) in (tuple(np.ravel(value)), (value, value))


def test_a_record_makes_the_picture_again() -> None:
    warm = pipeline.load(DATA)
    first = warm.generate(PROMPT, width=32, height=24, sampler="flash", steps=3, seed=5, shift=2.0)
    known = set(first.record) & {"seed", "steps", "width", "height", "guidance", "sampler", "shift", "timesteps",
                                 "noise_scale", "noise_clip", "negative_prompt"}  # fmt: skip
    again = warm.generate(PROMPT, **{name: first.record[name] for name in known})
    assert (np.asarray(first.image) == np.asarray(again.image)).all()


def test_a_prompt_too_long_is_cut_with_a_note() -> None:
    family = opened(DATA)

    branch, notes = family.encode(Prompt("abcdef ghi"), settings(*SIZE, max_sequence_length=6))
    short, _ = family.encode(Prompt("abcdef"), settings(*SIZE))
    assert "ghi" in notes[0] and branch.txt.shape == short.txt.shape


def test_one_reference_is_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both branches, and the next seed, share the vision tower's work."""
    warm = pipeline.load(DATA)
    calls = []
    monkeypatch.setattr(hidream, "encode_patches", lambda *given: calls.append(1) or encode_patches(*given))
    warm.generate(PROMPT, width=32, height=24, steps=2, seed=[1, 2], guidance=3.0, references=references(DATA, 1))
    assert len(calls) == 1


def test_starting_from_a_picture() -> None:
    warm = pipeline.load(DATA)
    picture = references(DATA, 1)[0]
    kept = warm.generate(PROMPT, image=picture, strength=0.2, steps=10, seed=1, noise_scale=0.01, guidance=1.0)
    assert kept.image.size == picture.size


def test_a_language_model_is_told_apart(tmp_path: Path) -> None:
    """Plain Qwen3-VL has the same kind of config.json."""

    (tmp_path / "tokenizer.json").write_bytes((DATA / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((DATA / "tokenizer_config.json").read_bytes())

    config = json.loads((DATA / "config.json").read_text())
    del config["hidream_o1"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_checkpoint(DATA / "model.safetensors")
    keep = {name: source[name].read() for name in source if "_embedder" not in name and "final_layer2" not in name}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), keep)
    with pytest.raises(ConfigError, match="not HiDream-O1-Image"):
        opened(tmp_path)


def test_no_tensor_may_be_missing(tmp_path: Path) -> None:

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    source = open_checkpoint(DATA / "model.safetensors")
    keep = {name: source[name].read() for name in source if "layers.1.mlp.up_proj" not in name}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), keep)
    with pytest.raises(MismatchError, match=r"1 missing: model.language_model.layers.1.mlp.up_proj.weight"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["noise", "step_noise"])
@pytest.mark.parametrize(
    ("noise", "words"), [(np.zeros((1, 3, 24, 24)), "shape"), (np.full((1, 3, 24, 32), np.nan), "NaN")]
)
def test_noise_that_does_not_fit_is_refused_before_anything_is_loaded(name: str, noise: np.ndarray, words: str) -> None:
    given = {"noise": noise, "step_noise": [np.zeros((1, 3, 24, 32)), noise]}
    with pytest.raises(RequestError, match=f"^{name} .*{words}"):
        pipeline.load(DATA).jobs(PROMPT, width=32, height=24, steps=3, sampler="flash", **{name: given[name]})


def test_the_published_layout_loads(tmp_path: Path) -> None:
    """No subfolders: float32 shards under one index, which names lm_head and the eyes as well."""
    source = open_checkpoint(DATA / "model.safetensors")
    names = sorted(source)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(tmp_path / file), {name: source[name].read() for name in part})
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    asked = {"width": 32, "height": 24, "steps": 2, "seed": 1, "references": references(DATA, 1)}
    one, other = (np.asarray(pipeline.load(folder).generate(PROMPT, **asked).image) for folder in (DATA, tmp_path))
    assert (one == other).all()


def test_numbers_without_the_block_come_from_shapes_and_tokenizer(tmp_path: Path) -> None:
    """As in the published repositories, whose config.json is plain Qwen3-VL's."""
    reconfigured(tmp_path, lambda config: config.pop("hidream_o1"))
    with_block, without = opened(DATA).files.config, opened(tmp_path).files.config
    assert without.patch.patch_size == 8 and without.patch.fix_point == 4096
    assert (without.boi, without.tms) == (with_block.boi, with_block.tms)
    asked = {"width": 64, "height": 64, "steps": 2, "seed": 1}
    one, other = (np.asarray(pipeline.load(folder).generate(PROMPT, **asked).image) for folder in (DATA, tmp_path))
    assert (one == other).all()


def test_a_trained_noise_scale_comes_with_the_folder(tmp_path: Path) -> None:
    reconfigured(tmp_path, lambda config: config["hidream_o1"].update(noise_scale=5.0))
    result = pipeline.load(tmp_path).generate(PROMPT, width=32, height=24, steps=2, seed=1)
    assert result.record["noise_scale"] == (5.0, 5.0)


def test_another_familys_folder_is_told() -> None:
    other = DATA.parent / "qwen_text" / "qwen2_5"
    with pytest.raises(ConfigError, match="Qwen2_5_VLModel"):
        pipeline.load(other)


@pytest.mark.parametrize("count", [0, 1])
def test_a_prompt_cannot_stand_for_pictures(count: int) -> None:
    """Its tokens would be taken for a reference's."""
    with pytest.raises(RequestError, match="leave it out, and give pictures as references"):
        pipeline.load(DATA).generate(
            "a fox <|image_pad|>", width=32, height=24, steps=2, references=references(DATA, count)
        )


def test_previews_and_seams_in_patches_of_this_model() -> None:
    seen = []
    warm = pipeline.load(DATA)
    warm.generate(PROMPT, width=32, height=24, steps=2, seed=1, on_step=lambda event: seen.append(event.preview().size))
    assert seen == [(32, 24)] * 2 and warm.family.seam_pixels == 8


@pytest.mark.parametrize(("name", "count"), [("t2i", 0), ("1ref", 1)])
def test_bfloat16_weights_beside_a_float32_stream(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: every dtype fits the next, and the picture is float32's to a few hundredths."""
    for module in ("families.hidream_o1.family", "vision.qwen3"):
        monkeypatch.setattr(f"mlx_imagegen.{module}.compute_dtype", lambda: mx.bfloat16)
    family, asked = opened(DATA), settings(*SIZE)
    want = mx.load(str(DATA / f"forward_{name}.safetensors"))
    branch, _ = family.encode(Prompt(PROMPT, tuple(references(DATA, count))), asked)
    (ready,) = family.denoiser([branch], timesteps_schedule([999.0]), asked).branches
    assert ready.prefix[0][0].dtype == mx.bfloat16
    picture = family.components["transformer"].load()(want["t0.z"], 999.0, ready.rope, ready.prefix, ready.references)
    assert picture.dtype == mx.float32
    assert float(mx.max(mx.abs(picture - want["t0.x_pred"]))) < 0.03 * float(mx.max(mx.abs(want["t0.x_pred"])))
