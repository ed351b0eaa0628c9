"""FLUX.3 against diffusers: blocks, transformer, text states, and whole pictures, on stored draws.

tests/references/flux3.py makes the draws. The check functions are the same that tests/parity/test_flux3.py runs on
fresh ones.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.flux3.family import Flux3
from mlx_imagegen.families.flux3.modulation import steps, tabulate
from mlx_imagegen.families.flux3.positions import picture_positions, reference_positions, text_positions
from mlx_imagegen.families.flux3.prompts import WINDOW, read_prompt
from mlx_imagegen.families.flux3.transformer import IMAGE, REFERENCES, TEXT, Flux3Transformer, Modulation
from mlx_imagegen.hub.manifest import Model
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.layers.parts import Part
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.lora.merge import Merge
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.text.tokenizer import qwen_tokenizer
from tests.draw import drawn_data

DATA = drawn_data() / "flux3"
KINDS = ("klein", "base")
WAYS = {
    "klein": ("seed", "long", "one", "mirrored", "two", "image"),
    "base": ("seed", "long", "one", "mirrored", "two"),
}
RELATIVE = 1e-5
LONG = "fox, 狐狸 " * 15


@pytest.fixture(params=KINDS)
def drawn(request: pytest.FixtureRequest) -> Path:
    return DATA / request.param


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def options_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "options.json").read_text())


def open_pipeline(folder: Path) -> Pipeline:
    """`load`, with as many tokens of text at most as the draw has."""
    manifest = recognize(folder)
    defaults = replace(manifest.defaults, max_sequence_length=options_of(folder)["length"])
    manifest, merge = replace(manifest, defaults=defaults), Merge()
    family = Flux3.open(folder, manifest, WeightTransforms((merge,)))
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, None, merge)


def opened(folder: Path) -> tuple[Flux3, dict[str, np.ndarray]]:
    family = open_pipeline(folder).family
    assert isinstance(family, Flux3)
    return family, load_file(folder / "inputs.safetensors") | load_file(folder / "reference.safetensors")


def check_blocks(folder: Path) -> None:
    """A block of the picture's own, and a joint one."""
    family, reference = opened(folder)
    model = family.files.transformer.fill(Flux3Transformer(family.files.config))
    img, txt = mx.array(reference["img"]), mx.array(reference["txt"])
    mods = with_ones(mx.array(reference["mods"]).reshape(2, 3, -1), 1)
    picture = family.rope_of(picture_positions(tuple(reference["grids"][0].tolist())))
    own = model.mode_blocks[IMAGE][0](img, picture, [Part(img.shape[1], mods[0])])
    assert relative(own, reference["own"]) < RELATIVE
    rope = mx.concatenate([family.rope_of(text_positions(txt.shape[1])), picture])
    parts = [Part(txt.shape[1], mods[1]), Part(img.shape[1], mods[0])]
    joint = model.single_transformer_blocks[0](mx.concatenate([txt, img], axis=1), rope, parts)
    assert relative(joint, reference["joint"]) < RELATIVE


def modulation(family: Flux3) -> Modulation:
    """At the reference's time, on the way to its target."""
    files = family.files
    return steps(tabulate(files.config, files.transformer.fill, [999.0, 618.1, 400.0], mx.float32))[1]


def check_transformer(folder: Path) -> None:
    family, reference = opened(folder)
    model, at = family.files.transformer.fill(Flux3Transformer(family.files.config)), modulation(family)
    first, *others = (tuple(grid) for grid in reference["grids"].tolist())
    features = mx.array(reference["features"])
    ropes = [
        family.rope_of(each)
        for each in (text_positions(features.shape[1]), picture_positions(first), reference_positions(others))
    ]
    given = (TEXT, features), (IMAGE, mx.array(reference["x"])), (REFERENCES, mx.array(reference["references"]))
    states = [model.states(kind, x, rope, at) for (kind, x), rope in zip(given, ropes, strict=True)]
    assert relative(model(states[:2], mx.concatenate(ropes[:2]), at), reference["v0"]) < RELATIVE
    assert relative(model(states, mx.concatenate(ropes), at), reference["v2"]) < RELATIVE


def check_ids(folder: Path) -> None:
    """Strings of every script in the template, filled up to windows, the last one cut."""
    texts, expected = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    length, tokenizer = options_of(folder)["length"], qwen_tokenizer(folder / "text_encoder")
    reads = [read_prompt(tokenizer, text, length) for text in texts]
    assert [read.ids for read in reads] == expected
    assert {len(read.ids) for read in reads} == {WINDOW, 2 * WINDOW}
    assert texts[-1].strip().endswith(reads[-1].cut) and len(reads[-1].cut) > 100
    assert not any(read.cut for read in reads if read.length < length)


def check_states(folder: Path) -> None:
    """What the transformer is given as text, padding included."""
    family, reference = opened(folder)
    options = options_of(folder)
    settings = Settings(32, 32, 1, 1.0, 1.0, {"max_sequence_length": options["length"]})
    branch, notes = family.encode(Prompt(options["prompt"]), settings)
    assert relative(branch.txt, reference["text.prompt"]) < RELATIVE and not notes


def picture(folder: Path, way: str) -> np.ndarray:
    """A whole pipeline's picture, as the reference was made."""
    options = options_of(folder)
    parameters: dict[str, Any] = {"steps": options["steps"], "seed": options["seed"]}
    parameters |= {"width": options["width"], "height": options["height"]} if way != "one" else {}
    parameters |= {"guidance": options["cfg"]} if options["kind"] == "base" else {}
    shown = {"one": (1,), "mirrored": (3,), "two": (2, 1)}.get(way, ())
    parameters["references"] = [folder / f"picture{index}.png" for index in shown]
    if way == "image":
        parameters |= {"image": folder / "picture1.png", "strength": options["strength"]}
    prompt = LONG if way == "long" else options["prompt"]
    return np.asarray(open_pipeline(folder).generate(prompt, **parameters).image).astype(int)


def check_picture(folder: Path, way: str) -> None:
    """The whole pipeline: at most one level off on any pixel."""
    theirs = load_file(folder / "reference.safetensors")[f"picture.{way}"].astype(int)
    ours = picture(folder, way)
    assert ours.shape == theirs.shape and theirs.std() > 4  # no flat picture, which anything would equal
    assert np.abs(ours - theirs).max() <= 1


def test_blocks_equal_diffusers(drawn: Path) -> None:
    check_blocks(drawn)


def test_transformer_equals_diffusers(drawn: Path) -> None:
    check_transformer(drawn)


def test_a_gpu_s_way_through_it_equals_diffusers(drawn: Path, as_on_a_gpu: Callable[[], None]) -> None:
    """Vectors chosen token by token, layers stacked."""
    as_on_a_gpu()
    check_blocks(drawn)
    check_transformer(drawn)
    check_picture(drawn, "two")


def test_ids_equal_transformers() -> None:
    check_ids(DATA / "klein")


def test_text_states_equal_transformers() -> None:
    check_states(DATA / "klein")


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS[kind]])
def test_pictures_equal_diffusers(kind: str, way: str) -> None:
    check_picture(DATA / kind, way)
