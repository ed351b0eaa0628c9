"""Biases that the next pointwise function adds, and inputs in several parts, against the plain sum and product."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers.activation import gelu_tanh
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.layers.products import divided_gelu_tanh_of, gated_sum_of, gelu_tanh_of
from mlx_imagegen.precision import FLOAT16_DIVISOR


def drawn_linear(packed: bool, bias: bool = True) -> tuple[Linear, np.ndarray, np.ndarray]:
    """A layer of 192 inputs and 24 outputs, its weight in full precision, its bias."""
    layer, weight = Linear(192, 24, bias), mx.random.normal((24, 192), key=mx.random.key(1))
    layer.weight = weight
    if packed:
        layer.pack(Packing(8, 64))
        layer.weight, layer.scales, layer.biases = mx.quantize(weight, 64, 8)
        weight = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, 8)
    if bias:
        layer.bias = mx.random.normal((24,), key=mx.random.key(2))
    return layer, np.array(weight), np.array(layer.bias) if bias else np.zeros(24, np.float32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_is_added_once_by_whatever_comes_next(packed: bool, bias: bool) -> None:
    layer, weight, offset = drawn_linear(packed, bias)
    x, y, gate = (mx.random.normal(shape, key=mx.random.key(3)) for shape in ((1, 5, 192), (1, 5, 24), (24,)))
    want = np.array(x) @ weight.T + offset
    product = layer.product(x)
    assert (product.bias is not None) == (packed and bias)
    np.testing.assert_allclose(np.array(layer(x)), want, atol=2e-4)
    np.testing.assert_allclose(np.array(gelu_tanh_of(product)), np.array(gelu_tanh(mx.array(want))), atol=2e-4)
    gated = np.array(y) + np.array(gate) * want
    np.testing.assert_allclose(np.array(gated_sum_of(y, gate, product)), gated, atol=1e-3)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_inputs_in_parts_are_those_in_one_place(
    packed: bool, bias: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a dense weight is read in parts as well."""
    monkeypatch.setattr("mlx_imagegen.layers.linear.on_gpu", lambda: gpu)
    layer, weight, offset = drawn_linear(packed, bias)
    x = mx.random.normal((1, 5, 192), key=mx.random.key(3))
    parts = x[..., :64], x[..., 64:]
    want = np.array(x) @ weight.T + offset
    np.testing.assert_allclose(np.array(layer.product_of_parts(*parts).sum()), want, atol=2e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_divided_input_gives_the_same_product(packed: bool, bias: bool) -> None:
    layer, weight, offset = drawn_linear(packed, bias)
    x, y, gate = (mx.random.normal(shape, key=mx.random.key(3)) for shape in ((1, 5, 192), (1, 5, 24), (24,)))
    want = np.array(x) @ weight.T + offset
    product = layer.product_of_divided(x / FLOAT16_DIVISOR)
    np.testing.assert_allclose(np.array(product.sum()), want, atol=2e-4)
    gated = np.array(y) + np.array(gate) * want
    np.testing.assert_allclose(np.array(gated_sum_of(y, gate, product)), gated, atol=1e-3)
    part = divided_gelu_tanh_of(layer.product(x))
    np.testing.assert_allclose(8 * np.array(part), np.array(gelu_tanh(mx.array(want))), atol=2e-4)


def test_only_scales_get_their_one() -> None:
    table = mx.random.normal((2, 3, 6, 8), key=mx.random.key(1))
    want = np.array(table)
    want[:, :, [1, 4]] += 1
    assert (np.array(with_ones(table, 1, 4)) == want).all()
