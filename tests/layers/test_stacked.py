"""Layers whose weights lie in one place give what they give apart, and are the same layers to whoever reads them."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.layers.joint import GatedProjection, JointAttention
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.layers.stacked import stack_layers, stacked
from mlx_imagegen.loading.modules import layers, own_parameters
from mlx_imagegen.quantization.calibrate import watching
from tests.draw import drawn_data

Q4 = Packing(4, 32)


def filled(module: nn.Module, packing: Packing | None) -> nn.Module:
    keys = iter(mx.random.split(mx.random.key(1), 100))
    for _, layer in layers(module):
        for name, value in own_parameters(layer).items():
            layer[name] = mx.random.normal(value.shape, key=next(keys)) / 8
        if packing and isinstance(layer, Linear):
            weight = layer.weight
            layer.pack(packing)
            layer.weight, layer.scales, layer.biases = mx.quantize(weight, packing.group_size, packing.bits)
    mx.eval(module.parameters())
    return module


def parameters(module: nn.Module) -> dict[str, np.ndarray]:
    return {
        f"{path}.{name}": np.array(value)
        for path, layer in layers(module)
        for name, value in own_parameters(layer).items()
    }


def stack(module: nn.Module) -> int:
    done = list(stack_layers(module))
    mx.eval([each.arrays for each in done], module.parameters())
    return len(done)


@pytest.mark.parametrize("packing", [None, Q4])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_the_same_in_fewer_products(packing: Packing | None, bias: bool) -> None:
    attention = filled(JointAttention(256, 8, 1e-6, bias), packing)
    img, txt = (mx.random.normal((2, length, 256), key=mx.random.key(length)) for length in (6, 3))
    rope = rope_table(np.arange(9)[:, None], [32], 1e4)

    def run() -> list[np.ndarray]:
        first, second, queries = attention.with_queries(img, txt, rope)
        return [np.array(each) for each in (first.sum(), second.sum(), queries)]

    apart, named = run(), parameters(attention)
    held = mx.get_active_memory()
    assert stack(attention) == 4, "products and norms of two streams"
    for one, other in zip(apart, run(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    for name, value in parameters(attention).items():
        np.testing.assert_array_equal(value, named[name])
    assert mx.get_active_memory() - held < sum(value.nbytes for value in named.values()) / 8, "nothing is held twice"


def test_a_gate_and_what_it_gates_are_one_product() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = Linear(32, 48), Linear(32, 48)
            self.both = GatedProjection(self.gate, self.up)
            self.stack = self.both.stack

    part, x = filled(Part(), None), mx.random.normal((5, 32), key=mx.random.key(3))
    apart = np.array(part.both(x))
    assert stack(part) == 1
    np.testing.assert_allclose(np.array(part.both(x)), apart, atol=1e-4)


@pytest.mark.parametrize("packings", [(None, Q4), (Q4, Packing(8, 32))])
def test_layers_that_are_packed_otherwise_stay_apart(packings: tuple[Packing | None, ...]) -> None:
    both = [filled(Linear(64, 64), packing) for packing in packings]
    assert stacked(*both) is None  # type: ignore[arg-type]
    assert stacked(both[0], both[0]) is not None  # type: ignore[arg-type]


FAMILIES = ["flux/dev", "flux2/klein", "qwen_image/image", "qwen_image_21/model", "z_image/base"]


@pytest.mark.parametrize("quant", [None, "q4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_those_of_layers_apart(family: str, quant: str | None, as_on_a_gpu: Callable[[], None]) -> None:
    def draw() -> np.ndarray:
        pipeline = load(drawn_data() / family, quant=quant)
        result = pipeline.generate("a fox", seed=3, width=64, height=64, steps=2)
        return np.array(result.image, np.int16)

    apart = draw()
    as_on_a_gpu()
    assert abs(draw() - apart).max() <= 1


def test_a_layer_that_is_filled_again_is_stacked_again(as_on_a_gpu: Callable[[], None]) -> None:
    as_on_a_gpu()
    component = load(drawn_data() / "qwen_image" / "image").family.transformer
    attention = component.load().transformer_blocks[0].attn
    x = mx.random.normal((1, 4, attention.to_k.weight.shape[1]), key=mx.random.key(1))
    rope = rope_table(np.arange(4)[:, None], [attention._head_size], 1e4)
    before = np.array(attention.project(x, rope)[1])
    attention.to_k.weight = attention.to_k.weight * 2
    component._stack(component.load())
    doubled = np.array(attention.project(x, rope)[1])
    component.refill({"transformer_blocks.0.attn.to_k"})
    assert not np.allclose(doubled, before, atol=1e-3)
    np.testing.assert_array_equal(np.array(attention.project(x, rope)[1]), before)


@pytest.mark.parametrize("family", ["z_image/base", "qwen_image_21/model"])
def test_layers_that_are_filled_again_are_not_held_twice(family: str, as_on_a_gpu: Callable[[], None]) -> None:
    """As when a LoRA is set or removed: no more than a block's layers are."""
    as_on_a_gpu()
    component = load(drawn_data() / family).family.transformer
    sizes = [value.nbytes for _, layer in component.loaded_layers() for value in own_parameters(layer).values()]
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    component.refill({path for path, _ in component.loaded_layers()})
    assert mx.get_peak_memory() - before < sum(sizes) / 3  # two blocks or three, and what is not in blocks
    assert mx.get_active_memory() - before < sum(sizes) / 50


def test_layers_that_are_watched_stay_apart(as_on_a_gpu: Callable[[], None]) -> None:
    as_on_a_gpu()
    family = load(drawn_data() / "qwen_image" / "image").family
    stacked_heads = family.transformer.load().transformer_blocks[0].attn._heads._stacked
    with watching(family.components, "transformer", {}):
        assert family.transformer.load().transformer_blocks[0].attn._heads._stacked is None
    assert stacked_heads is not None
