"""FLUX.1 against diffusers: blocks, transformer, and whole pictures, on stored draws (tests/references/flux.py).

The check functions are the same that tests/parity/test_flux.py runs on fresh draws.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.families.flux1.family import Flux1
from mlx_imagegen.families.flux1.modulation import tabulate
from mlx_imagegen.families.flux1.positions import THETA
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.layers.activation import silu
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.pipeline import Pipeline
from tests.draw import drawn_data

STORED = [drawn_data() / "flux" / kind for kind in ("dev", "schnell")]
RELATIVE = 1e-5
WAYS = ("noise", "seed", "cfg", "image")


@pytest.fixture(params=STORED, ids=lambda folder: folder.name)
def drawn(request: pytest.FixtureRequest) -> Path:
    return request.param


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def check_blocks(folder: Path) -> None:
    """One double and one single block, their adaLN linears included."""
    flux, reference = open_flux(folder)
    weights, config = flux.files.transformer, flux.files.config
    model = weights.fill(FluxTransformer(config))
    r = {name: mx.array(value) for name, value in reference.items()}
    rope = rope_table(reference["ids"], config.axes_dims_rope, THETA)

    def mod(path: str, chunks: int) -> mx.array:
        linear = weights.fill(Linear(config.inner_dim, chunks * config.inner_dim), path)
        return with_ones(linear(silu(r["temb"])).reshape(chunks, -1), *((1, 4) if chunks == 6 else (1,)))

    img, txt = model.transformer_blocks[0](
        r["img"], r["txt"], rope, mod("transformer_blocks.0.norm1.linear", 6),
        mod("transformer_blocks.0.norm1_context.linear", 6),
    )  # fmt: skip
    assert relative(img, reference["double.img"]) < RELATIVE
    assert relative(txt, reference["double.txt"]) < RELATIVE
    both = mx.concatenate([r["txt"], r["img"]], axis=1)
    single = model.single_transformer_blocks[0](both, rope, mod("single_transformer_blocks.0.norm.linear", 3))
    assert relative(single, np.concatenate([reference["single.txt"], reference["single.img"]], axis=1)) < RELATIVE


def check_transformer(folder: Path) -> None:
    """The whole transformer, its modulation folded into a table with other rows in it."""
    flux, reference = open_flux(folder)
    files = flux.files
    model = files.transformer.fill(FluxTransformer(files.config))
    r = {name: mx.array(value) for name, value in reference.items()}
    timesteps = [999.0, float(reference["t"][0]) * 1000, 20.0]
    tables = tabulate(files.config, files.transformer.fill, timesteps, 3.5, [r["pooled"] * 2, r["pooled"]], mx.float32)
    rope = rope_table(reference["ids"], files.config.axes_dims_rope, THETA)
    assert relative(model(r["x"], r["features"], rope, tables[1][1]), reference["v"]) < RELATIVE


def check_picture(folder: Path, way: str, pipeline: Pipeline | None = None) -> None:
    """The whole pipeline: at most one level off on any pixel."""
    reference, options = load_file(folder / "reference.safetensors"), json.loads((folder / "prompts.json").read_text())
    names = ("steps", "width", "height", "guidance", "seed")
    parameters: dict[str, Any] = {name: options[name] for name in names} | {"max_sequence_length": options["length"]}
    if way in ("noise", "cfg"):
        parameters["noise"] = reference["noise"]
    if way == "cfg":
        parameters |= {"negative_prompt": options["negative_prompt"], "true_cfg": options["cfg"]}
    if way == "image":
        parameters |= {"image": folder / "picture.png", "strength": options["strength"]}
    result = (pipeline or load(folder)).generate(options["prompt"], **parameters)
    ours, theirs = np.asarray(result.image).astype(int), reference[f"picture.{way}"].astype(int)
    assert ours.shape == theirs.shape and theirs.std() > 3
    assert np.abs(ours - theirs).max() <= 1


def check_latents(folder: Path) -> None:
    """What the loop leaves, before the decoder can smooth a difference away."""
    reference, options = load_file(folder / "reference.safetensors"), json.loads((folder / "prompts.json").read_text())
    pipeline = load(folder)
    seen: list[mx.array] = []
    decode = pipeline.family.decode
    pipeline.family.decode = lambda x, settings: seen.append(x) or decode(x, settings)  # type: ignore[func-returns-value]
    names = ("steps", "width", "height", "guidance", "seed")
    parameters = {name: options[name] for name in names} | {"max_sequence_length": options["length"]}
    pipeline.generate(options["prompt"], noise=reference["noise"], **parameters)
    assert relative(seen[-1], reference["latents"]) < 4 * RELATIVE  # four steps


def open_flux(folder: Path) -> tuple[Flux1, dict[str, np.ndarray]]:
    family = load(folder).family
    assert isinstance(family, Flux1)
    return family, load_file(folder / "reference.safetensors")


def test_blocks_equal_diffusers(drawn: Path) -> None:
    check_blocks(drawn)


def test_transformer_equals_diffusers(drawn: Path) -> None:
    check_transformer(drawn)


def test_latents_equal_diffusers(drawn: Path) -> None:
    check_latents(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_picture_equals_diffusers(drawn: Path, way: str) -> None:
    check_picture(drawn, way)


def test_the_ways_differ() -> None:
    """So that the four comparisons are four: no reference picture is another one's."""
    reference = load_file(STORED[0] / "reference.safetensors")
    pictures = [reference[f"picture.{way}"].astype(int) for way in WAYS]
    assert all(np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i])


def test_staged_equals_resident(drawn: Path) -> None:
    """One stage in memory at a time gives the same picture, and leaves nothing loaded."""
    pipeline = load(drawn, resident=False)
    check_picture(drawn, "seed", pipeline)
    assert not any(component.loaded for component in pipeline.family.components.values())


def test_text_encoders_are_gone_before_the_first_step(drawn: Path) -> None:
    pipeline = load(drawn, resident=False)
    seen = []

    def look(event: Any) -> None:
        seen.append({name for name, component in pipeline.family.components.items() if component.loaded})

    pipeline.generate("a fox", seed=1, steps=2, width=32, height=32, on_step=look)
    assert seen == [{"transformer"}] * 2


@pytest.mark.parametrize("stop", ["cancelled at a step", "one picture of two"])
def test_staged_leaves_nothing_loaded_when_it_is_stopped(stop: str) -> None:
    """Else the next prompt's text encoders would come on top of the transformer."""
    pipeline = load(STORED[0], resident=False)
    asked = {"seed": [1, 2], "steps": 1, "width": 32, "height": 32}
    loaded: list[bool] = []

    def cancel(event: Any) -> None:
        raise KeyboardInterrupt

    if stop == "cancelled at a step":
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate("a fox", on_step=cancel, **asked)
    else:
        results = pipeline.stream(pipeline.jobs("a fox", **asked))
        next(results)
        loaded = [component.loaded for component in pipeline.family.components.values()]
        results.close()  # as a `break` out of a loop over them does
    assert any(loaded) == (stop == "one picture of two")
    assert not any(component.loaded for component in pipeline.family.components.values())


def test_a_seed_of_numpys_is_one_seed() -> None:
    asked = {"steps": 1, "width": 32, "height": 32}
    pipeline = load(STORED[1])
    one, other = (pipeline.generate("a fox", seed=seed, **asked) for seed in (3, np.int64(3)))
    assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_same_seed_same_picture_twice(drawn: Path) -> None:
    options = {"seed": 7, "steps": 2, "width": 32, "height": 48}
    first, second = (np.asarray(load(drawn).generate("a map", **options).image) for _ in range(2))
    other = np.asarray(load(drawn).generate("a map", **options | {"seed": 8}).image)
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_text_is_encoded_once_for_many_seeds(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, prompts = load(drawn), []
    encode = pipeline.family.encode
    monkeypatch.setattr(
        pipeline.family, "encode", lambda prompt, settings: prompts.append(prompt.text) or encode(prompt, settings)
    )
    results = pipeline.generate("a map", seed=3, count=3, steps=1, width=32, height=32)
    assert prompts == ["a map"] and [result.seed for result in results] == [3, 4, 5]


def test_guidance_is_told_to_dev_alone() -> None:
    """dev's picture changes with guidance; schnell's cannot, and a note says so."""
    options = {"seed": 1, "steps": 1, "width": 32, "height": 32}
    dev, schnell = (load(folder) for folder in STORED)
    assert not np.array_equal(*(np.asarray(dev.generate("a", guidance=g, **options).image) for g in (1.0, 9.0)))
    results = [schnell.generate("a", guidance=g, **options) for g in (1.0, 9.0)]
    assert np.array_equal(*(np.asarray(result.image) for result in results))
    assert any("no effect" in note for note in results[0].report.notes)


def test_long_prompts_say_what_is_cut(drawn: Path) -> None:
    words = " ".join(["fox"] * 200) + " zebra"
    report = load(drawn).generate(words, seed=1, steps=1, width=32, height=32, max_sequence_length=48).report
    assert any("cut off" in note and "zebra" in note for note in report.notes)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_weights_that_are_no_numbers_draw_nothing(tmp_path: Path, damage: float) -> None:
    folder = shutil.copytree(STORED[1], tmp_path / "model")
    path = next((folder / "vae").glob("*.safetensors"))
    tensors = load_file(path)
    name = "decoder.conv_out.bias"
    save_file(tensors | {name: np.full_like(tensors[name], damage)}, path)
    with pytest.raises(CheckpointError, match="no colours"):
        load(folder).generate("a fox", seed=1, steps=1, width=32, height=32)
