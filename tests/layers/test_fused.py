"""What runs as one kernel on a GPU gives the numbers of what runs on the CPU: compiled where there is a compiler."""

import shutil
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers import fused, rope
from mlx_imagegen.layers.activation import gelu_tanh, swiglu
from mlx_imagegen.layers.attention import split_heads
from mlx_imagegen.layers.fused import gated_sum, gated_sum_of_two, residual_sum
from mlx_imagegen.layers.products import Product, gelu_tanh_of
from mlx_imagegen.text import qwen

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="mx.compile on the CPU needs a C++ compiler")


def drawn(*shape: int, seed: int = 1, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def both(monkeypatch: pytest.MonkeyPatch, work: Callable[[], mx.array]) -> tuple[np.ndarray, np.ndarray]:
    """As on the CPU, then as on a GPU."""
    out = np.array(work().astype(mx.float32))
    for module in (fused, rope, qwen):
        monkeypatch.setattr(module, "on_gpu", lambda: True)
    return out, np.array(work().astype(mx.float32))


@needs_compiler
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_both_kinds_of_rope(dtype: mx.Dtype, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = split_heads(drawn(2, 5, 3 * 8, dtype=dtype), 3) if transposed else drawn(2, 3, 5, 8, dtype=dtype)
    angle = drawn(5, 4, seed=2)
    pairs = (mx.cos(angle) + 1j * mx.sin(angle)).astype(mx.complex64)
    for work in (
        lambda: rope.rotate(heads, pairs),
        lambda: qwen.rotate_halves(heads, (mx.cos(angle), mx.sin(angle))),
    ):
        with monkeypatch.context() as patch:
            plain, kernel = both(patch, work)
        assert plain.shape == kernel.shape == (2, 3, 5, 8)
        np.testing.assert_allclose(kernel, plain, atol=1e-6 if dtype == mx.float32 else 0.02)


@needs_compiler
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_sums_and_activations(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (drawn(1, 6, 8, seed=seed, dtype=dtype) for seed in (1, 2))
    gate: Any = drawn(8, seed=3, dtype=dtype)
    wide = drawn(1, 6, 8, seed=4)
    for work in (
        lambda: gated_sum(x, gate, y),
        lambda: gated_sum_of_two(x, gate, y, gate),
        lambda: gated_sum_of_two(x, gate, y, x),
        lambda: gelu_tanh_of(Product(x, gate)),
        lambda: residual_sum(wide, y),
        lambda: gelu_tanh(x),
        lambda: swiglu(x, y),
    ):
        with monkeypatch.context() as patch:
            plain, kernel = both(patch, work)
        np.testing.assert_allclose(kernel, plain, atol=1e-6 if dtype == mx.float32 else 0.04)


def test_a_norm_of_heads_is_the_same_before_they_change_places() -> None:
    x, weight = drawn(2, 5, 24), drawn(8, seed=2)
    norm = lambda heads: mx.fast.rms_norm(heads, weight, 1e-6)  # noqa: E731
    assert mx.array_equal(split_heads(x, 3, norm), norm(split_heads(x, 3)))
