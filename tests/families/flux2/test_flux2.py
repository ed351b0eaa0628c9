"""FLUX.2 against diffusers: blocks, transformer, text states, and whole pictures, on stored draws.

tests/references/flux2.py makes the draws. The check functions are the same that tests/parity/test_flux2.py runs on
fresh ones.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.flux2.family import Flux2
from mlx_imagegen.families.flux2.modulation import steps, tabulate
from mlx_imagegen.families.flux2.positions import picture_positions, reference_positions, text_positions
from mlx_imagegen.families.flux2.prompts import read_dev, read_klein
from mlx_imagegen.families.flux2.transformer import Flux2Transformer, Modulation
from mlx_imagegen.hub.manifest import Model, manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.lora.merge import Merge
from mlx_imagegen.masks import Region
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.text.tokenizer import qwen_tokenizer, tekken_tokenizer
from tests.draw import drawn_data

DATA = drawn_data() / "flux2"
KINDS = ("klein", "dev")
WAYS = {"klein": ("cfg", "seed", "one", "two", "kept", "image", "masked"), "dev": ("seed", "two")}
RELATIVE = 1e-5
BOX = (24, 8, 56, 41)  # in pixels; its edges run through the middle of tokens


@pytest.fixture(params=KINDS)
def drawn(request: pytest.FixtureRequest) -> Path:
    return DATA / request.param


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def options_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "options.json").read_text())


def open_pipeline(folder: Path, like: str | None = None) -> Pipeline:
    """`load`, with as many tokens of text as the draw has. `like`: a manifest to take instead of the recognized one."""
    manifest = manifests()[like] if like else recognize(folder)
    defaults = replace(manifest.defaults, max_sequence_length=options_of(folder)["length"])
    manifest, merge = replace(manifest, defaults=defaults), Merge()
    family = Flux2.open(folder, manifest, WeightTransforms((merge,)))
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, None, merge)


def opened(folder: Path) -> tuple[Flux2, dict[str, np.ndarray]]:
    family = open_pipeline(folder).family
    assert isinstance(family, Flux2)
    return family, load_file(folder / "inputs.safetensors") | load_file(folder / "reference.safetensors")


def grids_of(reference: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    return [tuple(grid) for grid in reference["grids"].tolist()]


def check_blocks(folder: Path) -> None:
    """One block of each kind, with reference tokens after the picture's."""
    family, reference = opened(folder)
    model = family.files.transformer.fill(Flux2Transformer(family.files.config))
    given = {name: mx.array(value) for name, value in reference.items() if value.dtype == np.float32}
    img, txt = given["img"], given["txt"]
    scales = {"img": (1, 4), "txt": (1, 4), "single": (1,)}
    mods = [with_ones(given[f"mod_{name}"].reshape(-1, img.shape[2]), *scales[name]) for name in scales]
    first, *others = grids_of(reference)
    placed = (text_positions(txt.shape[1]), picture_positions(first), reference_positions(others))
    rope = family.rope_of(np.concatenate(placed))
    img_out, txt_out = model.transformer_blocks[0](img, txt, rope, mods[0], mods[1])
    assert relative(img_out, reference["double.img"]) < RELATIVE
    assert relative(txt_out, reference["double.txt"]) < RELATIVE
    single, _ = model.single_transformer_blocks[0](mx.concatenate([txt, img], axis=1), rope, mods[2])
    assert relative(single, reference["single"]) < RELATIVE


def modulation_at(family: Flux2, folder: Path, t: float) -> Modulation:
    """A row of a table that has others."""
    files, guidance = family.files, options_of(folder)["guidance"]
    times = [999.0, t * 1000, 20.0]
    return steps(tabulate(files.config, files.transformer.fill, times, mx.float32, guidance))[1]


def check_transformer(folder: Path) -> None:
    family, reference = opened(folder)
    model = family.files.transformer.fill(Flux2Transformer(family.files.config))
    modulation = modulation_at(family, folder, float(reference["t"][0]))
    x, features = mx.array(reference["x"]), mx.array(reference["features"])
    for count in (0, 1, 2):
        first, *others = grids_of(reference)[: count + 1]
        more = sum(rows * columns for rows, columns in others)
        rope = family._rope(features.shape[1], first, others)
        v = model(x[:, : first[0] * first[1] + more], features, rope, modulation, more)
        assert relative(v, reference[f"v{count}"]) < RELATIVE


def check_kept(folder: Path) -> None:
    """References whose keys and values are computed once: the step that diffusers computes them in, and a later one."""
    family, reference = opened(folder)
    model = family.files.transformer.fill(Flux2Transformer(family.files.config))
    (first, *others), x = grids_of(reference), mx.array(reference["x"])
    target, features = first[0] * first[1], mx.array(reference["features"])
    alone = family.rope_of(reference_positions(others))
    kept = model.keys_values(x[:, target:], alone, modulation_at(family, folder, 0.0))
    rope = family._rope(features.shape[1], first, ())
    for name, t, scale in (("first", float(reference["t"][0]), 1.0), ("later", 0.3, 0.9)):
        v = model(scale * x[:, :target], features, rope, modulation_at(family, folder, t), kept=kept)
        assert relative(v, reference[f"kept.{name}"]) < RELATIVE


def check_ids(folder: Path) -> None:
    """Strings of every script in the template, the last one cut."""
    texts, expected = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    length, klein = options_of(folder)["length"], options_of(folder)["kind"] == "klein"
    tokenizer = (qwen_tokenizer if klein else tekken_tokenizer)(folder / "tokenizer")
    reads = [(read_klein if klein else read_dev)(tokenizer, text, length) for text in texts]
    assert [read.ids for read in reads] == expected
    assert texts[-1].strip().endswith(reads[-1].cut) and len(reads[-1].cut) > 100
    whole = [read for read in reads if len(read.ids) < length]
    assert len(whole) > 5 and not any(read.cut for read in whole)


def check_states(folder: Path) -> None:
    """What the transformer is given as text, padding included."""
    family, reference = opened(folder)
    options = options_of(folder)
    settings = Settings(32, 32, 1, 4.0, 4.0, {"max_sequence_length": options["length"]})
    for name, text in {"prompt": options["prompt"], "blank": ""}.items():
        branch, notes = family.encode(Prompt(text), settings)
        assert relative(branch.txt, reference[f"text.{name}"]) < RELATIVE and not notes
    _, notes = family.encode(Prompt("fox, 狐狸 " * 100), settings)
    assert notes


def picture(folder: Path, way: str) -> np.ndarray:
    """A whole pipeline's picture, as the reference was made."""
    options, klein = options_of(folder), options_of(folder)["kind"] == "klein"
    parameters: dict[str, Any] = {"steps": options["steps"], "seed": options["seed"]}
    parameters |= {"width": options["width"], "height": options["height"]} if way not in ("one", "masked") else {}
    if not klein:
        parameters["guidance"] = options["guidance"]
    elif way != "kept":
        parameters["guidance"] = options["cfg"] if way in ("cfg", "two", "masked") else 1.0
    if way == "image":
        parameters |= {"image": folder / "picture1.png", "strength": options["strength"]}
    if way == "masked":
        given = Image.open(folder / "picture1.png").resize((64, 64), Image.Resampling.NEAREST)
        parameters |= {"image": given, "mask_box": BOX, "strength": options["strength"]}
    if way in ("one", "two", "kept"):
        parameters["references"] = [folder / f"picture{index}.png" for index in (1, 2)][: 1 if way == "one" else 2]
    pipeline = open_pipeline(folder, "flux2-klein-9b-kv" if way == "kept" else None)
    if way == "masked":  # what is drawn, before the given picture is pasted around it
        drawn: list[Image.Image] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Region, "paste", lambda region, image: drawn.append(image) or image)
            pipeline.generate(options["prompt"], **parameters)
        return np.asarray(drawn[0]).astype(int)
    return np.asarray(pipeline.generate(options["prompt"], **parameters).image).astype(int)


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


def test_kept_references_equal_diffusers() -> None:
    check_kept(DATA / "klein")


def test_ids_equal_transformers(drawn: Path) -> None:
    check_ids(drawn)


def test_text_states_equal_transformers(drawn: Path) -> None:
    check_states(drawn)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS[kind]])
def test_pictures_equal_diffusers(kind: str, way: str) -> None:
    check_picture(DATA / kind, way)
