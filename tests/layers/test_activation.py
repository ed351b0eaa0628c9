"""Activations against their definitions in float64, from values that underflow to values that overflow in exp, as they
run on the CPU and, fused, on a GPU."""

import math
import shutil
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers import activation

VALUES = np.array([-3e4, -200.0, -89.0, -20.0, -3.0, -0.7, -1e-3, 0.0, 1e-3, 0.7, 3.0, 20.0, 89.0, 200.0, 3e4])


def normal(x: float) -> float:
    """The share of a normal distribution below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


DEFINITIONS: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x * logistic(x),
    "quick_gelu": lambda x: x * logistic(1.702 * x),
    "gelu": lambda x: x * normal(x),
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_equals_its_definition(name: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused and shutil.which("g++") is None:
        pytest.skip("fusing on the CPU needs a C++ compiler")
    monkeypatch.setattr("mlx_imagegen.layers.fused.on_gpu", lambda: fused)
    function = getattr(activation, name)
    for dtype, tolerance in ((mx.float32, 1e-6), (mx.bfloat16, 2**-8), (mx.float32, 1e-6)):
        x = mx.array(VALUES, dtype)
        expected = [DEFINITIONS[name](float(value)) for value in x.tolist()]  # type: ignore[union-attr,arg-type]
        assert function(x).dtype == dtype
        np.testing.assert_allclose(np.array(function(x).astype(mx.float32)), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_swiglu_is_silu_times_the_other_half(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused and shutil.which("g++") is None:
        pytest.skip("fusing on the CPU needs a C++ compiler")
    monkeypatch.setattr("mlx_imagegen.layers.fused.on_gpu", lambda: fused)
    for dtype, tolerance in ((mx.float32, 1e-6), (mx.bfloat16, 2**-7)):
        gate, x = mx.array(VALUES, dtype), mx.array(np.linspace(-2, 3, len(VALUES)), dtype)
        expected = [DEFINITIONS["silu"](a) * b for a, b in zip(gate.tolist(), x.tolist(), strict=True)]  # type: ignore[arg-type,operator]
        out = activation.swiglu(gate, x)
        assert out.dtype == dtype
        np.testing.assert_allclose(np.array(out.astype(mx.float32)), expected, rtol=tolerance, atol=1e-6)
