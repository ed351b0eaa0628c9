"""FLUX.1's published files, name by name and shape by shape, at full size and without allocating any of it.

tests/data/names holds the lists (tests/references/names.py); nothing here reads a weight.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen.autoencoders.kl import Autoencoder, VaeConfig
from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.files import CLIP_TABLE, T5_TABLE
from mlx_imagegen.families.flux1.keys import autoencoder_config, from_clip, from_original, from_t5, transformer_config
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.names import Rename, same_names
from mlx_imagegen.loading.tensors import NamedTensors, name_tensors
from mlx_imagegen.loading.weights import WeightTransforms, check_tensors, layers, own_parameters
from mlx_imagegen.text.clip import CLIPConfig, ClipTextModel
from mlx_imagegen.text.t5 import T5Config, T5Encoder
from tests.references.names import expand

NAMES = Path(__file__).parents[2] / "data/names"
MODELS = ["FLUX.1-schnell", "FLUX.1-dev"]
Trees = Callable[[dict[str, Any], Checkpoint], list[Any]]


def clip_trees(config: dict[str, Any], _: Checkpoint) -> list[Any]:
    read = CLIPConfig.read(config, "config.json")
    return [ClipTextModel(read), Table(CLIP_TABLE, read.vocab_size, read.hidden_size)]


def t5_trees(config: dict[str, Any], _: Checkpoint) -> list[Any]:
    read = T5Config.read(config, "config.json")
    return [T5Encoder(read), Table(T5_TABLE, read.vocab_size, read.d_model)]


def transformer_trees(config: dict[str, Any], _: Checkpoint) -> list[Any]:
    read = FluxConfig.read(config, "config.json")
    return [FluxTransformer(read), FluxModulators(read)]


def original_transformer_trees(_: dict[str, Any], checkpoint: Checkpoint) -> list[Any]:
    return transformer_trees(transformer_config(checkpoint), checkpoint)


def vae_trees(config: dict[str, Any], _: Checkpoint) -> list[Any]:
    return [Autoencoder(VaeConfig.read(config, "config.json"))]


def original_vae_trees(_: dict[str, Any], checkpoint: Checkpoint) -> list[Any]:
    return vae_trees(autoencoder_config(checkpoint), checkpoint)


# file of tests/data/names -> how its names are read, and what they must fill
COMPONENTS: dict[str, tuple[Rename, Trees]] = {
    "text_encoder": (from_clip, clip_trees),
    "text_encoder_2": (from_t5, t5_trees),
    "transformer": (same_names, transformer_trees),
    "vae": (same_names, vae_trees),
    "bfl_single_file_flux1": (from_original, original_transformer_trees),
    "bfl_single_file_ae": (from_ldm, original_vae_trees),
}


def published(model: str, component: str) -> tuple[NamedTensors, list[Any]]:
    path = (
        next((NAMES / model).glob(f"{component}*.json"))
        if "flux1" in component
        else NAMES / model / f"{component}.json"
    )
    config, shapes = expand(path)
    tensors = {name: Tensor(Path(component), name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    checkpoint = Checkpoint(tensors, [], Path(component))
    rename, trees = COMPONENTS[component]
    return name_tensors(component, checkpoint, rename), trees(config, checkpoint)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_published_tensor_is_bound(model: str, component: str) -> None:
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    weights, trees = published(model, component)
    check_tensors(weights, trees)
    assert mx.get_peak_memory() - before < 10**6  # the shapes of billions of parameters, and none of them


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_lost_a_foreign_and_a_misshapen_tensor_are_named_together(component: str) -> None:
    weights, trees = published("FLUX.1-dev", component)
    names = iter(weights.slices)
    lost, misshapen = next(names), next(names)
    odd = Tensor(Path("x"), "odd", "F32", (7, 7, 7), 0, 0)
    slices = dict(weights.slices) | {"foreign.weight": odd, misshapen: odd}
    del slices[lost]
    broken = replace(weights, slices=slices)
    with pytest.raises(MismatchError) as caught:
        check_tensors(broken, trees)
    message = str(caught.value)
    assert (
        f"1 missing: {lost}" in message
        and "1 unexpected: foreign.weight" in message
        and f"1 misshapen: {misshapen}" in message
    )


def test_modulation_is_27_percent_and_not_in_the_loop() -> None:
    """Design decision 5: what the folded linears weigh against the whole transformer."""

    def count(tree: Any) -> int:
        return sum(value.size for _, layer in layers(tree) for value in own_parameters(layer).values())

    _, (loop, folded) = published("FLUX.1-dev", "transformer")
    assert count(loop) + count(folded) == 11_901_408_320
    assert 0.26 < count(folded) / 11_901_408_320 < 0.29


def test_widths_whose_product_is_no_arrays_are_refused(flux_folder: Path, tmp_path: Path) -> None:
    """Each is within its range."""
    shutil.copytree(flux_folder, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    wide = {"attention_head_dim": 2**18, "num_attention_heads": 4096, "axes_dims_rope": [2**17, 2**16, 2**16]}
    config.write_text(json.dumps(json.loads(config.read_text()) | wide))
    with pytest.raises(ConfigError, match="larger than any array may be"):
        open_family(manifests()["flux-schnell"], tmp_path / "model", WeightTransforms())
