"""Qwen-Image-2.1 against diffusers: ids, text states, block, transformer, and whole pictures, on a stored draw.

tests/references/qwen_image_21.py makes the draw. The check functions are the same that tests/parity runs on fresh ones.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.qwen_image_21.family import THETA, QwenImage21
from mlx_imagegen.families.qwen_image_21.modulation import steps, tabulate
from mlx_imagegen.families.qwen_image_21.prompts import read_prompt
from mlx_imagegen.families.qwen_image_21.sequence import Segments, attend_in_line, in_line, length_of, positions
from mlx_imagegen.families.qwen_image_21.transformer import Block, Modulation, QwenImage21Transformer
from mlx_imagegen.hub.manifest import Model
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.image import open_picture
from mlx_imagegen.layers.attention import attend, split_heads
from mlx_imagegen.layers.modulation import modulate, with_ones
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.lora.merge import Merge
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.text.tokenizer import qwen_tokenizer
from tests.draw import drawn_data

MODEL = drawn_data() / "qwen_image_21/model"
WAYS = ("noise", "cfg", "edit", "three", "lora")
RELATIVE = 1e-5


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def options_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "options.json").read_text())


def open_pipeline(folder: Path, **parameters: Any) -> Pipeline:
    """`load`, with the area of the draw's references in the manifest's place."""
    manifest, area = recognize(folder), options_of(folder)["side"] ** 2
    extras = {"references": manifest.extras["references"] | {"area": area}, "references_area": area}
    manifest = replace(manifest, extras=manifest.extras | extras)
    merge = Merge()
    family = QwenImage21.open(folder, manifest, WeightTransforms((merge,)))
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, parameters.pop("resident", None), merge)


def opened(folder: Path) -> tuple[QwenImage21, dict[str, np.ndarray]]:
    family = open_pipeline(folder).family
    assert isinstance(family, QwenImage21)
    return family, load_file(folder / "reference.safetensors")


def references_of(folder: Path, count: int) -> tuple[Any, ...]:
    return tuple(open_picture(folder / f"picture{index}.png", alpha=True) for index in range(1, count + 1))


def check_ids(folder: Path) -> None:
    """Strings of every script in the template, without pictures and with two."""
    stored = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    tokenizer = qwen_tokenizer(folder / "processor")
    assert len(stored["rows"]) >= 40
    for text, shown, ids in stored["rows"]:
        read = read_prompt(tokenizer, text, [(2, 1), (1, 3)] if shown else [])
        assert (read.ids, read.system) == (ids, stored["system"])
        words = len(ids) - read.system - read.ids.count(read.picture)
        assert sum(segment for segment in read.segments if isinstance(segment, int)) == words
        assert [segment for segment in read.segments if isinstance(segment, tuple)] == (
            [(4, 2), (2, 6)] if shown else []
        )


def check_states(folder: Path) -> None:
    """The language model's states before its last norm: no system message, no places where pictures are seen."""
    family, reference = opened(folder)
    settings = Settings(64, 32, 1, 1.0)
    for name, count in (("prompt", 0), ("blank", 0), ("one", 1), ("three", 3)):
        text = "" if name == "blank" else options_of(folder)["prompt"]
        branch, notes = family.encode(Prompt(text, references_of(folder, count)), settings)
        assert relative(branch.txt, reference[f"text.{name}"]) < RELATIVE
        assert not notes


def check_block(folder: Path) -> None:
    """One block over text, a reference, text and the picture: what stands before it as a prefix, then the picture."""
    family, reference = opened(folder)
    config = family.files.config
    block = family.files.transformer.fill(Block(config), "transformer_blocks.0")
    x, rows = mx.array(reference["block.x"]), mx.array(reference["block.modulation"]).reshape(2, 4, -1)
    rows = with_ones(rows, 0, 2)
    now, clean = mx.concatenate([rows[:, :1], mx.tanh(rows[:, 1:2]), rows[:, 2:3], mx.tanh(rows[:, 3:])], axis=1)
    segments: Segments = (5, (2, 2), 3)
    rope = rope_table(positions((*segments, (2, 4))), config.axes_dims_rope, THETA)
    before, pair = block(x[:, :12], rope[:12], clean, segments=segments)
    after, _ = block(x[:, 12:], rope[12:], now, prefix=pair)
    assert relative(mx.concatenate([before, after], axis=1), reference["block.y"]) < RELATIVE


def layout(reference: dict[str, np.ndarray], references: int) -> Segments:
    """The draw's segments before the picture."""
    grids, (first, second, last) = [tuple(grid) for grid in reference["grids"].tolist()], reference["text"].tolist()
    return {
        0: (first + last,),
        1: (first, grids[0], last),
        3: (first, grids[0], second, grids[1], grids[2], last),
    }[references]


def velocities(folder: Path, references: int) -> tuple[mx.array, mx.array]:
    """With the prefix's keys and values kept, and of the whole sequence at once under a dense mask."""
    family, reference = opened(folder)
    files, segments = family.files, layout(reference, references)
    model = files.transformer.fill(QwenImage21Transformer(files.config))
    timesteps = [999.0, float(reference["t"][0]), 20.0]
    _, now, _, clean = steps(tabulate(files.config, files.transformer.fill, timesteps, mx.float32))
    txt = mx.array(reference["states"])[:, : sum(segment for segment in segments if isinstance(segment, int))]
    pictures = sum(length_of(segment) for segment in segments if isinstance(segment, tuple))
    latents = mx.array(reference["latents"])
    shown, target = latents[:, :pictures] if references else None, latents[:, -16:]
    rope = rope_table(positions((*segments, (4, 4))), files.config.axes_dims_rope, THETA)
    length = sum(map(length_of, segments))
    prefix = model.prefix(txt, shown, segments, rope[:length], clean)
    kept = model(target, rope[length:], prefix, now)
    return kept, masked(model, txt, shown, target, segments, rope, (now, clean))


def masked(
    model: QwenImage21Transformer,
    txt: mx.array,
    shown: mx.array | None,
    target: mx.array,
    segments: Segments,
    rope: mx.array,
    modulation: tuple[Modulation, Modulation],
) -> mx.array:
    """The whole sequence at once, each token with its own modulation, under the mask as it is described."""
    before = in_line(model.txt_in(txt), None if shown is None else model.img_in(shown), segments)
    x = mx.concatenate([before, model.img_in(target)], axis=1)
    runs = [*segments, (4, 4)]
    owner = np.concatenate([[-1 if isinstance(run, int) else place] * length_of(run) for place, run in enumerate(runs)])
    places = np.arange(len(owner))
    same = (owner[:, None] == owner[None]) & (owner[:, None] >= 0)
    mask = mx.array((places[:, None] >= places[None]) | same)
    is_target = mx.array(places >= len(owner) - 16)[:, None]
    rows = mx.where(is_target, modulation[0].block[:, None], modulation[1].block[:, None])  # [4, L, D]
    eps = 1e-6
    for block in model.transformer_blocks:
        scale, gate, mlp_scale, mlp_gate = rows
        normed = mx.fast.layer_norm(x, None, None, eps) * scale
        out = attend(*block.attn.project(normed, rope), mask=mask)
        x = x + gate * block.attn.to_out[0](out)
        x = x + mlp_gate * block.img_mlp(mx.fast.layer_norm(x, None, None, eps) * mlp_scale)
    return model.proj_out(modulate(x[:, -16:], None, modulation[0].out, eps))


def check_transformer(folder: Path) -> None:
    """Without references, with one, and with three of which two stand side by side."""
    reference = load_file(folder / "reference.safetensors")
    for references in (0, 1, 3):
        kept, whole = velocities(folder, references)
        assert relative(kept, reference[f"v{references}"]) < RELATIVE
        assert relative(kept, np.array(whole)) < RELATIVE


def picture(folder: Path, way: str, **more: Any) -> np.ndarray:
    """A whole pipeline's picture, as the reference was made."""
    options, reference = options_of(folder), load_file(folder / "reference.safetensors")
    parameters: dict[str, Any] = {"steps": options["steps"], "guidance": 1.0, "transparent": True}
    if way != "edit":
        parameters |= {"width": options["width"], "height": options["height"]}
    parameters |= {"seed": options["seed"]} if way == "edit" else {"noise": reference["noise"]}
    if way in ("cfg", "three"):
        parameters |= {"guidance": options["cfg"], "negative_prompt": options["negative_prompt"]}
    count = {"edit": 1, "three": 3}.get(way, 0)
    if count:
        parameters["references"] = [folder / f"picture{index}.png" for index in range(1, count + 1)]
    pipeline = open_pipeline(folder)
    if way == "lora":
        pipeline.set_lora([folder / "lora.safetensors"])
    return np.asarray(pipeline.generate(options["prompt"], **parameters | more).image).astype(int)


def check_picture(folder: Path, way: str) -> None:
    """The whole pipeline, alpha and all: at most one level off on any pixel."""
    theirs = load_file(folder / "reference.safetensors")[f"picture.{way}"].astype(int)
    ours = picture(folder, way)
    assert ours.shape == theirs.shape and ours.shape[2] == 4
    assert theirs[..., :3].std() > 4 and theirs[..., 3].std() > 1  # no flat picture, which anything would equal
    assert np.abs(ours - theirs).max() <= 1


def test_ids_equal_transformers() -> None:
    check_ids(MODEL)


def test_text_states_equal_transformers() -> None:
    check_states(MODEL)


def test_block_equals_diffusers() -> None:
    check_block(MODEL)


def test_transformer_equals_diffusers_and_the_whole_sequence_under_a_mask() -> None:
    check_transformer(MODEL)


@pytest.mark.parametrize("way", WAYS)
def test_picture_equals_diffusers(way: str) -> None:
    check_picture(MODEL, way)


def test_without_transparent_a_picture_has_its_three_colours() -> None:
    made = picture(MODEL, "noise", transparent=False)
    assert made.shape[2] == 3
    assert np.array_equal(made, picture(MODEL, "noise")[..., :3])


def test_pictures_side_by_side_stay_apart() -> None:
    """Two references without text between them do not look into each other; one of their size would."""
    q, k, v = (split_heads(mx.random.normal((1, 9, 8), key=mx.random.key(seed)), 2) for seed in range(3))
    apart, as_one = attend_in_line(q, k, v, (1, (2, 2), (2, 2))), attend_in_line(q, k, v, (1, (2, 4)))
    assert mx.abs(apart - as_one)[:, 1:5].max() > 1e-3
    assert mx.allclose(apart[:, 5:], as_one[:, 5:], atol=1e-6)
