"""Calibration: what is noted of the inputs, and that packing by it brings outputs closer on inputs not seen."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import RequestError
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.packing.affine import as_mlx, pack_rows, unpack_rows
from mlx_imagegen.quantization import calibrate
from mlx_imagegen.quantization.calibrate import Statistics, collect, pack_calibrated, watching
from tests.packing.test_affine import drawn, unpacked
from tests.tiny import draw_flux


def inputs(count: int, columns: int, seed: int) -> np.ndarray:
    """Correlated, of unlike size, and with a mean: as activations are."""
    dice = np.random.default_rng(0)
    mix = dice.standard_normal((columns, columns)) / np.sqrt(columns) * np.exp(-np.arange(columns) / 60)[:, None]
    loud = np.exp(0.7 * dice.standard_normal(columns))
    x = np.random.default_rng(seed).standard_normal((count, columns)) @ mix
    return ((x + 0.2 * dice.standard_normal(columns)) * loud).astype(np.float32)


def noted(x: np.ndarray) -> Statistics:
    statistics = Statistics.of(x.shape[1])
    for part in np.split(x, 4):
        statistics.add(mx.array(part)[None])
    return statistics


def test_statistics_are_the_inputs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BLOCK_COLUMNS", 64)
    x = inputs(400, 160, 1)
    statistics = noted(x)
    assert statistics.count == 400 and np.allclose(statistics.mean, x.mean(axis=0), atol=1e-5)
    assert [moment.shape for moment in statistics.moments] == [(64, 64), (64, 64), (32, 32)]
    assert np.allclose(np.array(statistics.moments[1]), x[:, 64:128].T @ x[:, 64:128], rtol=1e-4, atol=1e-2)
    squares = (x**2).mean(axis=0)
    assert np.allclose(statistics.importance, squares + calibrate.DAMPING * squares.mean(), rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_unpacking_is_mlxs(bits: int) -> None:
    packing = Packing(bits, 64)
    packed = pack_rows(drawn(5, 320), packing)
    assert np.abs(unpack_rows(packed, packing) - unpacked(packed, packing)).max() < 1e-7


@pytest.mark.parametrize(("bits", "at_most"), [(3, 0.4), (4, 0.4), (6, 0.4)])
def test_outputs_on_unseen_inputs_are_closer(bits: int, at_most: float) -> None:
    w, packing = drawn(96, 640), Packing(bits, 64)
    statistics, unseen = noted(inputs(2000, 640, 1)), inputs(500, 640, 2)
    packed, shift = pack_calibrated(w, packing, statistics)
    searched = pack_rows(w, packing, search=True)
    errors = [unseen @ (made - w).T for made in (unpacked(packed, packing), unpacked(searched, packing))]
    calibrated = errors[0] + shift
    assert np.sqrt((calibrated**2).mean()) < at_most * np.sqrt((errors[1] ** 2).mean())
    assert np.abs(calibrated.mean(axis=0)).mean() < 0.1 * np.abs(errors[1].mean(axis=0)).mean()


def test_eight_bits_are_rounded_and_only_their_mean_is_mended() -> None:
    w, packing = drawn(16, 128), Packing(8, 64)
    x = inputs(300, 128, 1)
    packed, shift = pack_calibrated(w, packing, noted(x))
    plain = pack_rows(w, packing)
    assert all((packed[name] == plain[name]).all() for name in plain)
    assert np.allclose(shift, (w - unpacked(plain, packing)) @ x.mean(axis=0), atol=1e-6)


def test_rows_may_be_cut_anywhere() -> None:
    w, packing, statistics = drawn(40, 256), Packing(4, 64), noted(inputs(500, 256, 1))
    whole, shift = pack_calibrated(w, packing, statistics)
    parts = [pack_calibrated(part, packing, statistics) for part in np.split(w, [7, 20])]
    cut = np.concatenate([unpack_rows(part, packing) for part, _ in parts])
    # The products' order is BLAS's own, so that here and there a group takes another scale, which is as good.
    other = (unpack_rows(whole, packing) != cut).reshape(-1, 64).any(axis=1)
    assert other.mean() < 0.1
    assert np.allclose(shift, np.concatenate([each for _, each in parts]), atol=1e-3)


def test_codes_are_in_mlxs_order() -> None:
    """A weight that four bits hold exactly comes back exactly, whatever the inputs are."""
    dice = np.random.default_rng(0)
    w = dice.integers(0, 16, (24, 192)).astype(np.float32)
    w[:, ::64], w[:, 1::64] = 0, 15
    packed, _ = pack_calibrated(w, Packing(4, 64), noted(inputs(500, 192, 1)))
    options = {"group_size": 64, "bits": 4}
    read = mx.dequantize(*(as_mlx(packed[name]) for name in ("weight", "scales", "biases")), **options)
    assert (np.array(read.astype(mx.float32)) == w).all()


def test_layers_are_watched_only_inside() -> None:
    layer, x = Linear(32, 8), mx.random.normal((3, 32))
    layer.weight = mx.random.normal((8, 32))
    plain = layer(x)
    with watching([("a", layer)]) as found:
        assert mx.array_equal(layer(x), plain)
    layer(x)
    assert found["a"].count == 3 and type(layer) is Linear


def test_a_run_is_noted_layer_by_layer(tmp_path: Path) -> None:
    pipeline = load(draw_flux(tmp_path / "model"))
    found = collect(pipeline, ["a cat", "a dog"], [1, 2], steps=2, width=64, height=48, max_sequence_length=16)
    image, pictures, steps = 4 * 3, 4, 2
    assert found["x_embedder"].count == pictures * steps * image
    assert found["single_transformer_blocks.2.proj_out"].count == pictures * steps * (image + 16)
    with pytest.raises(RequestError, match="no prompt"):
        collect(pipeline, [], [1])
