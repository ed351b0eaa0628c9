"""What the norms' weights say of a linear layer's inputs, and that packing by it brings outputs closer."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.families import family_spec
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.weights import own_parameters
from mlx_imagegen.packing.affine import pack_rows, unpack_rows
from mlx_imagegen.packing.importance import FLOOR, importance, importance_in
from mlx_imagegen.quantization.quantizer import quantize
from tests.packing.test_affine import drawn

UNIFORM = "bits = 4\nsearch = true\nkeep = ['vae']\n[[hidream_o1]]\nmatch = '*'\nbits = 4\n"
LAST = "model.final_layer2.linear"
NORMS = family_spec("hidream_o1").norms


def test_the_norm_in_front() -> None:
    gamma = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
    tensors = {"model.language_model.norm.weight": mx.array(gamma)}
    assert np.allclose(importance(LAST, NORMS, tensors.get), gamma**2 + FLOOR * (gamma**2).mean(), rtol=1e-6)
    assert importance(LAST, NORMS, {}.get) is None
    assert importance("model.language_model.layers.0.mlp.up_proj", NORMS, tensors.get) is None


@pytest.mark.parametrize("model", ["hidream-demo", "flux-demo", "qwen-demo"])
def test_it_is_found_in_a_model_that_has_it(model: str) -> None:
    weights = load(model).family.components["transformer"].weights
    found = {path: importance_in(weights, path, NORMS) for path in weights.linears}
    known = {path: value.shape for path, value in found.items() if value is not None}
    assert known == ({LAST: (128,)} if model == "hidream-demo" else {})


def test_outputs_behind_a_norm_are_closer() -> None:
    dice = np.random.default_rng(0)
    gamma = np.exp(0.8 * dice.standard_normal(512)).astype(np.float32)
    x = dice.standard_normal((300, 512)).astype(np.float32) * gamma
    w, packing = drawn(128, 512), Packing(4, 64)
    known = importance(LAST, NORMS, {"model.language_model.norm.weight": mx.array(gamma)}.get)
    errors = [x @ (unpack_rows(pack_rows(w, packing, True, counts), packing) - w).T for counts in (None, known)]
    assert (errors[1] ** 2).mean() < 0.8 * (errors[0] ** 2).mean()


def test_streamed_and_in_memory_use_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "uniform.toml"
    recipe.write_text(UNIFORM)
    streamed = open_checkpoint(quantize("hidream-demo", tmp_path / "made", quant=str(recipe)))
    layers = dict(load("hidream-demo", quant=str(recipe)).family.components["transformer"].loaded_layers())
    for path, layer in layers.items():
        for name, value in own_parameters(layer).items():
            if value.dtype == mx.uint32:
                assert (np.array(value) == streamed[f"{path}.{name}"].bytes()).all(), path
    source = load("hidream-demo").family.components["transformer"].weights
    w, codes = np.array(source.read_weight(LAST).astype(mx.float32)), np.array(layers[LAST].weight)
    known = importance_in(source, LAST, NORMS)
    weighted, plain = (pack_rows(w, Packing(4, 64), True, each)["weight"] for each in (known, None))
    assert (codes == weighted).all() and (codes != plain).any()
