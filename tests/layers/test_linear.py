"""Packed products on the CPU: right whatever the strips, and never more than a strip of a weight unpacked at once."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers import linear
from mlx_imagegen.layers.linear import DENSE, Linear, Packing, packed_matmul
from mlx_imagegen.packing.affine import pack_rows, unpack_rows
from mlx_imagegen.precision import on_gpu

pytestmark = pytest.mark.skipif(on_gpu(), reason="strips are the CPU's")


def drawn(rows: int, columns: int, bits: int) -> tuple[Packing, dict[str, np.ndarray], dict[str, mx.array]]:
    packing = Packing(bits, 64)
    packed = pack_rows(np.random.default_rng(bits).standard_normal((rows, columns)).astype(np.float32), packing)
    arrays = {
        name: mx.array(value) if name == "weight" else mx.array(value).view(mx.bfloat16).astype(mx.float32)
        for name, value in packed.items()
    }
    return packing, packed, arrays


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("strip", [1, 300, 128 * 7, 1 << 22])
def test_the_product_is_that_of_the_unpacked_weight(bits: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "STRIP", strip)
    packing, packed, arrays = drawn(20, 128, bits)
    x = mx.random.normal((2, 9, 128), key=mx.random.key(0))
    out = packed_matmul(x, arrays["weight"], arrays["scales"], arrays["biases"], packing, DENSE)
    expected = np.array(x, np.float64) @ unpack_rows(packed, packing).astype(np.float64).T
    assert out.shape == (2, 9, 20) and np.abs(np.array(out) - expected).max() < 1e-4


@pytest.mark.parametrize("bits", [4, 6])
def test_one_strip_is_unpacked_at_a_time(bits: int) -> None:
    """Three layers of 38 MB each when unpacked, asked for at once, as a step's graph is."""
    packing, _, arrays = drawn(3072, 3072, bits)
    x = mx.random.normal((8, 3072))
    mx.eval(x, arrays)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        x = packed_matmul(x, arrays["weight"], arrays["scales"], arrays["biases"], packing, DENSE)
    mx.eval(x)
    copies = {4: 3, 6: 8}[bits]
    assert mx.get_peak_memory() - before < copies * 16 * 2**20


@pytest.mark.parametrize("packing", [None, Packing(4, 32)])
def test_runs_of_rows_are_those_of_one_product(packing: Packing | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(64, 48), mx.random.normal((3, 64), key=mx.random.key(2))
    layer.weight, layer.bias = (
        mx.random.normal(value.shape, key=mx.random.key(1)) for value in (layer.weight, layer.bias)
    )
    if packing:
        weight = layer.weight
        layer.pack(packing)
        layer.weight, layer.scales, layer.biases = mx.quantize(weight, packing.group_size, packing.bits)
    whole = np.array(layer(x))
    for gpu in (False, True):
        monkeypatch.setattr("mlx_imagegen.layers.linear.on_gpu", lambda gpu=gpu: gpu)
        runs = [np.array(run) for run in layer.runs(x, (8, 30, 10))]
        assert [run.shape[-1] for run in runs] == [8, 30, 10]
        np.testing.assert_allclose(np.concatenate(runs, axis=-1), whole, atol=1e-4)
