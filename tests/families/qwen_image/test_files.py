"""Qwen-Image's published files, name by name and shape by shape, at full size and without allocating any of it.

tests/data/names holds the lists (tests/references/names.py). Qwen-Image, -2512, -Edit, -Edit-2509 and -Edit-2511 have
the same tensors; of -Edit-2511 the transformer's config differs. Where the published lists lie next to the checkout,
all five are checked.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen import load
from mlx_imagegen.autoencoders.qwen_image import Decoder, Encoder, VaeConfig, unused_tensors
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.families.folder import TABLE
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.names import Rename, same_names
from mlx_imagegen.loading.tensors import NamedTensors, name_tensors
from mlx_imagegen.loading.weights import WeightTransforms, check_tensors, layers, open_weights, own_parameters
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.text.qwen import HEAD, LanguageModel, from_published, read_config
from mlx_imagegen.vision.qwen2_5 import VISION, VisionConfig, vision_shapes, vision_tower
from tests.draw import drawn_data
from tests.references.names import Shapes, expand

NAMES = Path(__file__).parents[2] / "data/names"
PUBLISHED = Path(__file__).parents[4] / "shared/facts/manifests"
WHERE = Path("config.json")
COMPONENTS = ("transformer", "text_encoder", "vae", "text_encoder for editing")


def trees(component: str, config: dict[str, Any]) -> tuple[Rename, list[Any], tuple[str, ...]]:
    """How names are read, what they must fill, and what may be left over."""
    if component == "transformer":
        read = QwenImageConfig.read(config, WHERE)
        return same_names, [QwenImageTransformer(read), QwenImageModulators(read)], ()
    if component == "vae":
        vae = VaeConfig.read(config, WHERE)
        return same_names, [Encoder(vae), Decoder(vae)], unused_tensors(vae)
    text = read_config(config, WHERE)
    language = [LanguageModel(text), Table(TABLE, text.vocab_size, text.hidden_size)]
    if component == "text_encoder":
        return from_published, language, (HEAD, VISION)
    return from_published, [*language, vision_tower(VisionConfig.read_part(config, WHERE))], (HEAD,)


def opened(component: str, config: dict[str, Any], shapes: Shapes) -> tuple[NamedTensors, list[Any], tuple[str, ...]]:
    tensors = {name: Tensor(Path(component), name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    rename, modules, unused = trees(component, config)
    return name_tensors(component, Checkpoint(tensors, [], Path(component)), rename), modules, unused


def stored(model: str, component: str) -> tuple[dict[str, Any], Shapes]:
    return expand(NAMES / model / f"{component.partition(' ')[0]}.json")


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_published_tensor_is_bound(component: str) -> None:
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    weights, modules, unused = opened(component, *stored("Qwen-Image", component))
    check_tensors(weights, modules, unused)
    assert mx.get_peak_memory() - before < 10**6  # the shapes of billions of parameters, and none of them


def test_the_eyes_shapes_are_those_of_the_tower() -> None:
    """What stands here to check and to plan by is what mlx-vlm's tower will be filled with."""
    config = VisionConfig.read_part(stored("Qwen-Image", "text_encoder")[0], WHERE)
    tower, ours = ({
        f"{path}.{name}".strip("."): (value.shape, value.dtype)
        for path, layer in layers(build(config)) for name, value in own_parameters(layer).items()
    } for build in (vision_tower, vision_shapes))  # fmt: skip
    assert ours == tower and len(ours) > 300


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    "model", ["Qwen-Image", "Qwen-Image-2512", "Qwen-Image-Edit", "Qwen-Image-Edit-2509", "Qwen-Image-Edit-2511"]
)
def test_every_tensor_of_the_full_lists_is_bound(model: str, component: str) -> None:
    path = PUBLISHED / model / f"{component.partition(' ')[0]}.json"
    if not path.is_file():
        pytest.skip("the published lists do not lie next to this checkout")
    data = json.loads(path.read_text())
    shapes = {name: tuple(entry["shape"]) for name, entry in data["tensors"].items()}
    assert shapes == stored("Qwen-Image", component)[1]
    weights, modules, unused = opened(component, data["config"], shapes)
    check_tensors(weights, modules, unused)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_lost_a_foreign_and_a_misshapen_tensor_are_named_together(component: str) -> None:
    config, shapes = stored("Qwen-Image", component)
    weights, modules, unused = opened(component, config, shapes)
    parts = (names for names in [sorted(name for name in weights.slices if not name.startswith(unused or ("?",)))])
    lost, misshapen = next(parts)[:2]
    odd = Tensor(Path("x"), "odd", "F32", (7, 7, 7), 0, 0)
    broken = dict(weights.slices) | {"foreign.weight": odd, misshapen: odd}
    del broken[lost]
    with pytest.raises(MismatchError) as caught:
        check_tensors(replace(weights, slices=broken), modules, unused)
    message = str(caught.value)
    assert f"1 missing: {lost}" in message and "1 unexpected: foreign.weight" in message
    assert f"1 misshapen: {misshapen}" in message


def test_text_encoders_of_either_spelling_are_read() -> None:
    """As published, and as a newer transformers saves what it has in memory."""
    names = ["model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"]
    names += ["visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight", "lm_head.weight"]
    found = [target.name for name in names for target in from_published(name)]
    layer, eyes = "layers.0.mlp.up_proj.weight", "visual.merger.ln_q.weight"
    assert found == [layer, layer, eyes, eyes, "lm_head.weight"]


def test_only_2511_asks_for_zero_cond_t() -> None:
    asked = {
        model: QwenImageConfig.read(stored(model, "transformer")[0], WHERE).zero_cond_t
        for model in ("Qwen-Image", "Qwen-Image-Edit-2511")
    }
    assert asked == {"Qwen-Image": False, "Qwen-Image-Edit-2511": True}


def test_modulation_is_33_percent_and_not_in_the_loop() -> None:
    """Design decision 5: 27.2 GB of bf16 stay for the loop out of 40.9."""
    _, (loop, folded), _ = opened("transformer", *stored("Qwen-Image", "transformer"))
    loop_count, folded_count = (
        sum(value.size for _, layer in layers(tree) for value in own_parameters(layer).values())
        for tree in (loop, folded)
    )
    assert 2 * (loop_count + folded_count) == 40_860_802_176
    assert 27.1e9 < 2 * loop_count < 27.3e9


def test_relatives_are_refused_by_class() -> None:
    config, _ = stored("Qwen-Image", "transformer")
    relative = {"_class_name": "QwenImage21Transformer2DModel", "num_layers": 32}
    with pytest.raises(ConfigError, match="a QwenImage21Transformer2DModel, and here a QwenImageTransformer2DModel"):
        QwenImageConfig.read(config | relative, WHERE)


@pytest.mark.parametrize("axes", [[16, 56, 48], [16, 55, 57], [64, 64]])
def test_rope_axes_are_three_even_numbers_that_fill_a_head(axes: list[int]) -> None:
    config, _ = stored("Qwen-Image", "transformer")
    with pytest.raises(ConfigError, match="'axes_dims_rope' .* must be 3 even numbers"):
        QwenImageConfig.read(config | {"axes_dims_rope": axes}, WHERE)


@pytest.mark.parametrize("field", ["num_attention_heads", "num_layers", "patch_size"])
def test_a_count_of_nothing_is_refused(field: str) -> None:
    config, _ = stored("Qwen-Image", "transformer")
    with pytest.raises(ConfigError, match=f"field '{field}' is 0"):
        QwenImageConfig.read(config | {field: 0}, WHERE)


@pytest.mark.parametrize(("recipe", "expected"), [(None, 27.2), ("q4", 8.5), ("q6", 11.1), ("q8", 14.5)])
def test_resident_memory_in_the_loop(recipe: str | None, expected: float) -> None:
    """GB of the full-size transformer, modulation folded. Design decision 5 has 27.2, 7.7, 11.1 and 14.5; the q4 recipe
    gives 0.8 to layers that show few bits."""
    config, shapes = stored("Qwen-Image", "transformer")
    tensors = {name: Tensor(Path("x"), name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    transforms = read_recipe(recipe, "qwen_image").applied_to(WeightTransforms()) if recipe else WeightTransforms()
    read = QwenImageConfig.read(config, WHERE)
    trees = [QwenImageTransformer(read), QwenImageModulators(read)]
    weights = open_weights("transformer", Checkpoint(tensors, [], Path("x")), trees, transforms=transforms)
    loop = Component(weights, lambda: QwenImageTransformer(read), mx.bfloat16)
    assert round(loop.nbytes / 1e9, 1) == expected


@pytest.mark.parametrize(
    ("part", "field"),
    [("transformer", "in_channels"), ("transformer", "out_channels"), ("transformer", "joint_attention_dim")],
)
def test_parts_of_different_models_are_refused(part: str, field: str, tmp_path: Path) -> None:
    """Each part fits its own config; only the width at which one hands on to the next is another."""
    folder = shutil.copytree(drawn_data() / "qwen_image/image", tmp_path / "model")
    path = folder / part / "config.json"
    config = json.loads(path.read_text()) | {"num_layers": 1}
    config[field] += 4
    path.write_text(json.dumps(config))
    read = QwenImageConfig.read(config, path)
    tensors = {
        f"{name}.{parameter}" if name else parameter: value
        for tree in (QwenImageTransformer(read), QwenImageModulators(read))
        for name, layer in layers(tree)
        for parameter, value in own_parameters(layer).items()
    }
    mx.save_safetensors(str(folder / part / "diffusion_pytorch_model.safetensors"), tensors)
    with pytest.raises(ConfigError, match=f"field '{field}' is {config[field]}, but the"):
        load(folder)
