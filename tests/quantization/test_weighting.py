"""What the norms' weights say of a linear layer's inputs, and that packing by it brings outputs closer."""

import re
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.checkpoint import open_checkpoint
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.loading import Weights, own_parameters
from mlx_imagegen.quantization.packing import pack_rows, unpack_rows
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.quantization.weighting import FLOOR, importance
from tests.quantization.test_packing import drawn

UNIFORM = "bits = 4\nsearch = true\nkeep = ['vae']\n[[hidream_o1]]\nmatch = '*'\nbits = 4\n"
# What reads a norm's output in each of the demo models' components, and what must not be taken for it.
READERS = {
    ("hidream-demo", "transformer"): (r"(q|k|v|gate|up)_proj$|final_layer2", r"o_proj|down_proj|embedder"),
    ("flux-demo", "text_encoder_2"): (r"SelfAttention\.[qkv]$|wi_\d$", r"SelfAttention\.o$|wo$"),
    ("qwen-demo", "text_encoder"): (r"(q|k|v|gate|up)_proj$", r"o_proj|down_proj"),
    ("flux-demo", "transformer"): (r"$.", r"."),
    ("flux-demo", "text_encoder"): (r"$.", r"."),
    ("qwen-demo", "transformer"): (r"$.", r"."),
}


@pytest.mark.parametrize(
    ("linear", "norm"),
    [
        ("model.language_model.layers.7.self_attn.k_proj", "model.language_model.layers.7.input_layernorm"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.post_attention_layernorm"),
        ("model.final_layer2.linear", "model.language_model.norm"),
        ("encoder.block.3.layer.0.SelfAttention.q", "encoder.block.3.layer.0.layer_norm"),
        ("encoder.block.3.layer.1.DenseReluDense.wi_1", "encoder.block.3.layer.1.layer_norm"),
    ],
)
def test_the_norm_in_front(linear: str, norm: str) -> None:
    gamma = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
    tensors = {f"{norm}.weight": mx.array(gamma)}
    assert np.allclose(importance(linear, tensors.get), gamma**2 + FLOOR * (gamma**2).mean(), rtol=1e-6)
    assert importance(linear, {}.get) is None


@pytest.mark.parametrize(("model", "component"), READERS)
def test_it_is_found_for_every_layer_that_reads_one_and_for_no_other(model: str, component: str) -> None:
    readers, others = READERS[model, component]
    weights = load(model).family.components[component].weights
    found = {path: weights.importance(path) for path in weights.linears}
    assert {path for path in found if re.search(readers, path)} == {path for path in found if found[path] is not None}
    assert any(re.search(others, path) for path in found)
    for path, value in found.items():
        assert value is None or value.shape == (weights.linears[path][1],)


def test_outputs_behind_a_norm_are_closer() -> None:
    dice = np.random.default_rng(0)
    gamma = np.exp(0.8 * dice.standard_normal(512)).astype(np.float32)
    x = dice.standard_normal((300, 512)).astype(np.float32) * gamma
    w, packing = drawn(128, 512), Packing(4, 64)
    known = importance("a.mlp.up_proj", {"a.post_attention_layernorm.weight": mx.array(gamma)}.get)
    errors = [x @ (unpack_rows(pack_rows(w, packing, True, counts), packing) - w).T for counts in (None, known)]
    assert (errors[1] ** 2).mean() < 0.8 * (errors[0] ** 2).mean()


def test_streamed_and_in_memory_use_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "uniform.toml"
    recipe.write_text(UNIFORM)
    streamed = open_checkpoint(quantize("hidream-demo", tmp_path / "made", quant=str(recipe)))
    component = load("hidream-demo", quant=str(recipe)).family.components["transformer"]
    source, told = load("hidream-demo").family.components["transformer"].weights, 0
    for path, layer in component.loaded_layers():
        for name, value in own_parameters(layer).items():
            if value.dtype == mx.uint32:
                stored = streamed[f"{path}.{name}"].bytes()
                assert (np.array(value) == stored).all(), path
                told += any(_not_weighted(source, path, Packing(4, 64), stored))
    assert told > 20  # and packed without it they would be others


def _not_weighted(source: Weights, path: str, packing: Packing, stored: np.ndarray) -> Iterator[bool]:
    if source.importance(path) is not None:
        yield (pack_rows(np.array(source.whole(path).astype(mx.float32)), packing, True)["weight"] != stored).any()
