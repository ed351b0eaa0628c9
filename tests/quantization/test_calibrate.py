"""Calibration: what is noted of the inputs, and that packing by it brings outputs closer on inputs not seen."""

import gc
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.families import open_family
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.packing.affine import as_mlx, pack_rows, unpack_rows
from mlx_imagegen.quantization import calibrate
from mlx_imagegen.quantization.calibrate import Statistics, collect, empty_statistics, pack_calibrated, watching
from tests.packing.test_affine import drawn, unpacked
from tests.tiny import draw_flux
from tests.watch import Velocity, around_velocity


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


def test_what_is_loaded_is_watched_and_only_inside(tmp_path: Path) -> None:
    components = load(draw_flux(tmp_path / "model")).family.components
    plain, path = components["transformer"], "transformer_blocks.0.attn.to_q"
    x = mx.random.normal((3, 64))
    before = plain.load().transformer_blocks[0].attn.to_q(x)
    found = {path: Statistics.of(64)}
    with watching(components, "transformer", found):
        watched = components["transformer"].load().transformer_blocks[0]
        assert mx.array_equal(watched.attn.to_q(x), before) and found[path].count == 3
        watched.attn.to_k(x)
        components["transformer"].load()
        watched.attn.to_q(x)
    assert found[path].count == 6 and mx.allclose(found[path].total, 2 * x.sum(axis=0), atol=1e-5)
    assert components["transformer"] is plain and not plain.loaded
    assert type(plain.load().transformer_blocks[0].attn.to_q) is Linear


def test_nothing_is_noted_that_no_packing_uses() -> None:
    """Moments where codes make up for each other's errors; the mean where a bias can take it; else nothing."""
    with shape_only_folder(manifests()["hidream-o1"]) as folder:
        component = open_family(manifests()["hidream-o1"], folder, WeightTransforms()).components["transformer"]
        four, eight, other = Packing(4, 64), Packing(8, 64), Packing(4, 32, "mxfp4")
        down, q = (f"model.language_model.layers.3.{name}" for name in ("mlp.down_proj", "self_attn.q_proj"))
        biased = "model.t_embedder1.mlp.0"
        shapes = {path: layer.weight.shape for path, layer, _ in component.planned() if isinstance(layer, Linear)}
        columns = {path: shapes[path][1] for path in (down, q, biased)}
        found = empty_statistics(component, {down: four, q: eight, biased: eight})
        assert set(found) == {down, biased}
        assert found[down].nbytes == 4 * columns[down] * (calibrate.BLOCK_COLUMNS + 1)
        assert found[biased].nbytes == 4 * columns[biased]
        assert set(empty_statistics(component, {down: other, biased: other})) == {biased}


def test_a_run_is_noted_layer_by_layer(tmp_path: Path) -> None:
    pipeline = load(draw_flux(tmp_path / "model"))
    jobs = pipeline.jobs(["a cat", "a dog"], seed=[1, 2], steps=2, width=64, height=48, max_sequence_length=16)
    wanted = ("x_embedder", "single_transformer_blocks.2.proj_out", "transformer_blocks.1.ff.net.2")
    steps: list[tuple[int, int]] = []
    packings = {path: Packing(4, 32) for path in wanted}
    found = collect(pipeline, jobs, packings, lambda event: steps.append((event.picture, event.step)))
    image, pictures = 4 * 3, 4
    assert set(found) == set(wanted)
    assert found["x_embedder"].count == pictures * 2 * image
    assert found["single_transformer_blocks.2.proj_out"].count == pictures * 2 * (image + 16)
    assert isinstance(found["x_embedder"].total, np.ndarray)
    assert steps == [(picture, step) for picture in range(4) for step in (1, 2)]


def test_one_stage_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(draw_flux(tmp_path / "model"), resident=False)
    family, held = pipeline.family, {}
    before = family.components["transformer"].load().transformer_blocks[0].attn.to_q  # by an earlier picture
    layer = [weakref.ref(before)]
    del before

    def alive() -> bool:
        gc.collect()
        return any(reference() is not None for reference in layer)

    def encode(*given: Any, encode: Any = family.encode) -> Any:
        held["encode"] = alive() or family.components["transformer"].loaded
        return encode(*given)

    def watched(velocity: Velocity) -> Velocity:
        def watched_velocity(x: mx.array, index: int) -> mx.array:
            layer.append(weakref.ref(family.components["transformer"].load().transformer_blocks[0].attn.to_q))
            held["denoise"] = alive() and not family.components["text_encoder_2"].loaded
            return velocity(x, index)

        return watched_velocity

    def decode(*given: Any, decode: Any = family.decode) -> Any:
        held["decode"] = alive()
        return decode(*given)

    for name, function in {"encode": encode, "decode": decode}.items():
        monkeypatch.setattr(family, name, function)
    around_velocity(family, watched)
    jobs = pipeline.jobs("a cat", seed=1, steps=1, width=64, height=48)
    assert collect(pipeline, jobs, {"proj_out": Packing(4, 64)})["proj_out"].count == 12
    assert held == {"encode": False, "denoise": True, "decode": False}
