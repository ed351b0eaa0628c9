"""Qwen-Image against diffusers: block, transformer, text features, and whole pictures, on stored draws.

tests/references/qwen.py makes the draws. The check functions are the same that tests/parity/test_qwen.py runs on fresh
ones.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_imagegen import machine as memory
from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.qwen_image import family as qwen_image
from mlx_imagegen.families.qwen_image.family import THETA, QwenImage
from mlx_imagegen.families.qwen_image.modulation import steps, tabulate
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.prompts import GENERATE_TOKENS, ids_of
from mlx_imagegen.families.qwen_image.transformer import Part, QwenImageTransformer
from mlx_imagegen.hub.manifest import Model, manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.image import open_picture
from mlx_imagegen.layers.activation import silu
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.lora.merge import Merge
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.text.tokenizer import qwen_tokenizer
from tests.draw import drawn_data

DATA = drawn_data() / "qwen_image"
KINDS = ("image", "edit", "zero")  # stored; the parity tests draw `plus` as well
WAYS = {
    "image": ("noise", "seed", "cfg", "blank", "image", "lightning"),
    "edit": ("noise", "seed", "cfg"),
    "plus": ("noise", "seed", "cfg", "two"),
    "zero": ("noise", "seed", "cfg", "two"),
}
RELATIVE = 1e-5


@pytest.fixture(params=KINDS)
def drawn(request: pytest.FixtureRequest) -> Path:
    return DATA / request.param


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def options_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "options.json").read_text())


def open_pipeline(folder: Path, like: str | None = None, **parameters: Any) -> Pipeline:
    """`load`, with the areas of the draw's references in the manifest's place. `like`: a manifest to take instead."""
    options, manifest = options_of(folder), manifests()[like] if like else recognize(folder)
    if manifest.edits and not options["full_size"]:
        areas = {"latent_area": options["latent_area"], "language_area": options["latent_area"]}
        if manifest.extras["references"]["numbered"]:
            areas["language_area"] = options["language_area"]
        extras = {"references": manifest.extras["references"] | areas, "references_area": options["latent_area"]}
        manifest = replace(manifest, extras=manifest.extras | extras)
    merge = Merge()
    family = QwenImage.open(folder, manifest, WeightTransforms((merge,)))
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, parameters.pop("resident", None), merge)


def opened(folder: Path) -> tuple[QwenImage, dict[str, np.ndarray]]:
    family = open_pipeline(folder).family
    assert isinstance(family, QwenImage)
    return family, load_file(folder / "reference.safetensors")


def check_block(folder: Path) -> None:
    """One block, its adaLN linears included, with reference tokens after the picture's."""
    family, reference = opened(folder)
    weights, config = family.files.transformer, family.files.config
    block = weights.fill(QwenImageTransformer(config)).transformer_blocks[0]
    img, txt, temb = (mx.array(reference[name]) for name in ("img", "txt", "temb"))
    grids = [tuple(grid) for grid in reference["grids"].tolist()]
    rope = rope_table(positions(txt.shape[1], grids), config.axes_dims_rope, THETA)

    def mod(path: str) -> mx.array:
        linear = weights.fill(Linear(config.inner_dim, 6 * config.inner_dim), f"transformer_blocks.0.{path}")
        return with_ones(linear(silu(temb)).reshape(temb.shape[0], 6, -1), 1, 4)

    target = grids[0][0] * grids[0][1]
    lengths = (target, img.shape[1] - target) if config.zero_cond_t else (img.shape[1],)
    img_parts = [Part(length, rows) for length, rows in zip(lengths, mod("img_mod.1"), strict=True)]
    img_out, txt_out = block(img, txt, rope, img_parts, [Part(txt.shape[1], mod("txt_mod.1")[0])])
    assert relative(img_out, reference["block.img"]) < RELATIVE
    assert relative(txt_out, reference["block.txt"]) < RELATIVE


def transformer_difference(folder: Path, references: int, clean: bool = True) -> float:
    """The whole transformer, its modulation folded into a table with other rows in it."""
    family, reference = opened(folder)
    files = family.files
    model = files.transformer.fill(QwenImageTransformer(files.config))
    timesteps = [999.0, float(reference["t"][0]) * 1000, 20.0]
    table = steps(tabulate(files.config, files.transformer.fill, timesteps, mx.float32))
    modulation = table[1] if clean else table[1]._replace(clean=None)
    grids = [tuple(grid) for grid in reference["grids"].tolist()][: references + 1]
    counts = [rows * columns for rows, columns in grids]
    features = mx.array(reference["features"])
    rope = rope_table(positions(features.shape[1], grids), files.config.axes_dims_rope, THETA)
    v = model(mx.array(reference["x"])[:, : sum(counts)], features, rope, modulation, sum(counts[1:]))
    return relative(v, reference[f"v{references}"])


def check_transformer(folder: Path) -> None:
    for references in (0, 1, 2) if options_of(folder)["kind"] != "image" else (0,):
        assert transformer_difference(folder, references) < RELATIVE


def check_ids(folder: Path) -> None:
    """200 strings of every script in the template, the last one cut at 1024 tokens."""
    texts, first, common, rest = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    expected = [first[:common] + row for row in rest]
    assert len(texts) == 200 and len(expected[-1]) == 1024 + GENERATE_TOKENS
    tokenizer = qwen_tokenizer(folder / "tokenizer")
    reads = [ids_of(tokenizer, text, None, (), 1024) for text in texts]
    assert [read.ids for read in reads] == expected and expected[0] == first
    assert [bool(read.cut) for read in reads] == [False] * 199 + [True]


def check_features(folder: Path) -> None:
    """What the transformer is given as text: the template gone, pictures seen."""
    family, reference = opened(folder)
    prompts = {"text.prompt": options_of(folder)["prompt"], "text.blank": " "}
    pictures = tuple(open_picture(folder / f"picture{index}.png") for index in (1, 2))
    settings = Settings(32, 32, 1, 4.0, 4.0, {"max_sequence_length": 1024})
    names = [name for name in reference if name.startswith("text.")]
    for name in names:
        shown = {"text.one": pictures[:1], "text.two": pictures}.get(name, ())
        branch, notes = family.encode(Prompt(prompts.get(name, prompts["text.prompt"]), shown), settings)
        assert relative(branch.txt, reference[name]) < RELATIVE
        assert not notes
    assert names


def picture(folder: Path, way: str, pipeline: Pipeline | None = None) -> np.ndarray:
    """A whole pipeline's picture, as the reference was made."""
    options, reference = options_of(folder), load_file(folder / "reference.safetensors")
    parameters: dict[str, Any] = {"steps": options["steps"], "guidance": 1.0}
    if way != "seed" or options["kind"] == "image":
        parameters |= {"width": options["width"], "height": options["height"]}
    parameters |= {"seed": options["seed"]} if way in ("seed", "image") else {"noise": reference["noise"]}
    if way in ("cfg", "blank", "two"):
        parameters |= {"guidance": options["cfg"], "negative_prompt": options["negative_prompt"]}
    if way == "blank":
        del parameters["negative_prompt"]
    if way == "image":
        parameters |= {"image": folder / "picture1.png", "strength": options["strength"]}
    if options["kind"] != "image":
        parameters["references"] = [folder / f"picture{index}.png" for index in (1, 2)][: 2 if way == "two" else 1]
    if pipeline is None:
        pipeline = open_pipeline(folder, "qwen-image-lightning-4step" if way == "lightning" else None)
        if way == "lightning":
            pipeline.model = replace(pipeline.model, manifest=without_lora(pipeline.model.manifest))
            pipeline.set_lora([folder / "lightning.safetensors"])
    return np.asarray(pipeline.generate(options["prompt"], **parameters).image).astype(int)


def without_lora(manifest: Any) -> Any:
    """The same model with its own LoRA given by hand: this one lies in no repository."""
    return replace(manifest, extras={name: value for name, value in manifest.extras.items() if name != "lora"})


def check_picture(folder: Path, way: str, pipeline: Pipeline | None = None) -> None:
    """The whole pipeline: at most one level off on any pixel."""
    ours, theirs = (
        picture(folder, way, pipeline),
        load_file(folder / "reference.safetensors")[f"picture.{way}"].astype(int),
    )
    assert ours.shape == theirs.shape and theirs.std() > 4  # no flat picture, which anything would equal
    assert np.abs(ours - theirs).max() <= 1


def test_block_equals_diffusers(drawn: Path) -> None:
    check_block(drawn)


def test_transformer_equals_diffusers(drawn: Path) -> None:
    check_transformer(drawn)


def test_ids_equal_transformers() -> None:
    check_ids(DATA / "image")


def test_text_features_equal_transformers(drawn: Path) -> None:
    check_features(drawn)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS[kind]])
def test_picture_equals_diffusers(kind: str, way: str) -> None:
    check_picture(DATA / kind, way)


def check_merged_weights(folder: Path) -> None:
    """A LoRA as Lightning's are laid out: W + alpha / rank x B A, and what diffusers' own loader makes of it."""
    pipeline = open_pipeline(folder)
    plain = {name: np.array(weight(pipeline, name)) for name in merged(folder)}
    pipeline.set_lora([folder / "lightning.safetensors"])
    lora = load_file(folder / "lightning.safetensors")
    for name, theirs in merged(folder).items():
        down, up, alpha = (lora[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        formula = plain[name].astype(np.float64) + float(alpha) / len(down) * (up.astype(np.float64) @ down)
        ours = np.array(weight(pipeline, name))
        assert np.abs(ours - formula).max() < 1e-6 < np.abs(ours - plain[name]).max()
        assert np.abs(ours - theirs).max() < 1e-6


def merged(folder: Path) -> dict[str, np.ndarray]:
    reference = load_file(folder / "reference.safetensors")
    return {name.removeprefix("merged."): value for name, value in reference.items() if name.startswith("merged.")}


def weight(pipeline: Pipeline, path: str) -> mx.array:
    module = pipeline.family.components["transformer"].load()
    return dict(module.named_modules())[path].weight


def test_lightning_merges_as_the_formula_and_diffusers_do() -> None:
    check_merged_weights(DATA / "image")


def test_ignoring_zero_cond_t_would_show() -> None:
    """Qwen-Image-Edit-2511's tensors are alike those of -2509 in every name and shape: only a number tells."""
    assert transformer_difference(DATA / "zero", 1) < RELATIVE
    assert transformer_difference(DATA / "zero", 1, clean=False) > 1000 * RELATIVE
    assert transformer_difference(DATA / "zero", 0, clean=False) < RELATIVE  # nothing to modulate without references


@pytest.mark.parametrize(("kind", "way"), [("image", "cfg"), ("image", "blank"), ("zero", "two")])
def test_branches_in_one_batch_and_in_two_passes_give_the_same_picture(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    call = QwenImageTransformer.__call__
    monkeypatch.setattr(
        QwenImageTransformer, "__call__", lambda self, x, *rest: batches.append(len(x)) or call(self, x, *rest)
    )
    made = []
    for together in (True, False):
        monkeypatch.setattr(QwenImage, "_in_one_batch", lambda self, tokens, together=together: together)
        made.append(picture(DATA / kind, way))
    assert batches == [2] * 4 + [1] * 8
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.mark.parametrize(("gpu", "machine_bytes", "batch"), [(True, 10**12, 2), (True, 10**4, 1), (False, 10**12, 1)])
def test_one_batch_is_for_gpus_with_room(
    gpu: bool, machine_bytes: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    call = QwenImageTransformer.__call__
    monkeypatch.setattr(
        QwenImageTransformer, "__call__", lambda self, x, *rest: batches.append(len(x)) or call(self, x, *rest)
    )
    monkeypatch.setattr(qwen_image, "on_gpu", lambda: gpu)
    large = memory.MemoryLimit(10**12, 10**12, 10**12, False)
    monkeypatch.setattr("mlx_imagegen.planning.fitting.memory_limit", lambda: large)
    monkeypatch.setattr(memory, "physical_bytes", lambda: machine_bytes)
    check_picture(DATA / "image", "cfg")
    assert set(batches) == {batch}
