"""The packer against MLX's own kernels, which read what it writes, and against mx.quantize, which it must beat."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.bfloat import from_bf16, round_bf16, to_bf16, to_float32
from mlx_imagegen.errors import QuantizationError
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.packing.affine import as_mlx, fit, pack, pack_rows

BITS = (2, 3, 4, 5, 6, 8)


def drawn(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Heavy tails and columns of unlike size, as trained weights have, in bfloat16's numbers."""
    dice = np.random.default_rng(seed)
    spread = np.exp(0.5 * dice.standard_normal((1, columns)))
    return round_bf16((0.02 * dice.standard_t(4, (rows, columns)) * spread).astype(np.float32))


def unpacked(packed: dict[str, np.ndarray], packing: Packing) -> np.ndarray:
    """MLX's reading, in float32 arithmetic."""
    scales, biases = (as_mlx(packed[name]).astype(mx.float32) for name in ("scales", "biases"))
    options = {"group_size": packing.group_size, "bits": packing.bits}
    return np.array(mx.dequantize(mx.array(packed["weight"]), scales, biases, **options))


def by_mlx(w: np.ndarray, packing: Packing) -> np.ndarray:
    """mx.quantize, as everyone calls it on a bfloat16 weight, unpacked."""
    options = {"group_size": packing.group_size, "bits": packing.bits}
    weight, scales, biases = mx.quantize(mx.array(w).astype(mx.bfloat16), **options)
    return np.array(mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), **options))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_mlx_reads_the_codes_as_they_were_meant(bits: int, group_size: int) -> None:
    w, packing = drawn(7, 384), Packing(bits, group_size)
    codes, scale, bias = fit(np.ascontiguousarray(w.reshape(-1, group_size).T), bits)
    meant = (codes * scale + bias).T.reshape(w.shape)
    packed = pack_rows(w, packing)
    assert {name: value.shape for name, value in packed.items()} == packing.packed_shapes(*w.shape)
    assert np.abs(unpacked(packed, packing) - meant).max() <= 1e-6 * np.abs(w).max()
    x = np.random.default_rng(1).standard_normal((5, 384)).astype(np.float32)
    scales, biases = (as_mlx(packed[name]).astype(mx.float32) for name in ("scales", "biases"))
    y = mx.quantized_matmul(
        mx.array(x), mx.array(packed["weight"]), scales, biases, transpose=True, group_size=group_size, bits=bits
    )
    assert np.abs(np.array(y) - x @ meant.T).max() < 1e-4


@pytest.mark.parametrize("bits", BITS)
def test_no_weight_is_farther_from_its_code_than_half_a_step_unless_it_was_cut_off(bits: int) -> None:
    groups = np.ascontiguousarray(drawn(64, 640).reshape(-1, 64).T)
    codes, scale, bias = fit(groups, bits)
    inside = (codes > 0) & (codes < 2**bits - 1)
    assert (np.abs(codes * scale + bias - groups) <= 0.501 * np.abs(scale))[inside].all()
    assert (round_bf16(scale) == scale).all() and (round_bf16(bias) == bias).all()


@pytest.mark.parametrize(("bits", "at_most"), [(8, 0.75), (6, 0.97), (4, 1.005)])
def test_rounding_against_the_stored_scale_is_closer_than_mx_quantize(bits: int, at_most: float) -> None:
    w, packing = drawn(256, 1024), Packing(bits, 64)
    assert rms(unpacked(pack_rows(w, packing), packing) - w) < at_most * rms(by_mlx(w, packing) - w)


@pytest.mark.parametrize(("bits", "at_most"), [(6, 0.955), (5, 0.96), (4, 0.93), (3, 0.9)])
def test_the_search_is_closer_still_and_never_worse_in_any_group(bits: int, at_most: float) -> None:
    w, packing = drawn(256, 1024), Packing(bits, 64)
    plain, searched = (unpacked(pack_rows(w, packing, search), packing) - w for search in (False, True))
    assert rms(searched) < at_most * rms(by_mlx(w, packing) - w)
    per_group = [(error.reshape(-1, 64) ** 2).sum(axis=1) for error in (plain, searched)]
    assert (per_group[1] <= per_group[0] * (1 + 1e-4) + 1e-12).all()


def test_the_weighted_search_is_never_worse_by_its_own_measure() -> None:
    w, packing = drawn(64, 512), Packing(4, 64)
    counts = np.exp(np.random.default_rng(3).standard_normal(512)).astype(np.float32)
    made = (unpacked(pack_rows(w, packing, *how), packing) - w for how in ((False,), (True,), (True, counts)))
    plain, searched, weighted = ((error**2 * counts).reshape(-1, 64).sum(axis=1) for error in made)
    assert (weighted <= plain * (1 + 1e-4)).all()
    assert weighted.sum() < 0.97 * searched.sum()


def test_no_scale_and_bias_would_be_much_closer() -> None:
    """Next to the best of 3600 pairs of ends for each group."""
    w = drawn(40, 64)
    searched = ((unpacked(pack_rows(w, Packing(4, 64), True), Packing(4, 64)) - w) ** 2).sum()
    best = 0.0
    for row in w:
        low, high = np.meshgrid(np.linspace(0.5, 1, 60) * row.min(), np.linspace(0.5, 1, 60) * row.max())
        scale = ((high - low) / 15)[..., None]
        codes = np.clip(np.rint((row - low[..., None]) / scale), 0, 15)
        best += ((codes * scale + low[..., None] - row) ** 2).sum(axis=-1).min()
    assert searched < 1.08 * best


@pytest.mark.parametrize("search", [False, True])
def test_the_mean_of_a_layers_output_does_not_shift(search: bool) -> None:
    """What darkens pictures: inputs with a mean turn a row's mean error into a shift."""
    w, packing = drawn(256, 1024), Packing(8, 64)
    shifts = [
        np.abs((made - w).sum(axis=1)).mean()
        for made in (unpacked(pack_rows(w, packing, search), packing), by_mlx(w, packing))
    ]
    assert shifts[0] < 0.4 * shifts[1]


@pytest.mark.parametrize(("search", "weighted"), [(False, False), (True, False), (True, True)])
def test_any_cut_into_rows_gives_the_same_bits(search: bool, weighted: bool) -> None:
    w, packing = drawn(701, 1024), Packing(4, 64)  # more than one block
    counts = np.random.default_rng(4).random(1024).astype(np.float32) if weighted else None
    whole = pack_rows(w, packing, search, counts)
    cuts = [pack_rows(part, packing, search, counts) for part in np.split(w, [1, 8, 333])]
    in_memory = pack(mx.array(w).astype(mx.bfloat16), packing, search, counts)
    for name, value in whole.items():
        assert (np.concatenate([cut[name] for cut in cuts]) == value).all(), name
        assert mx.array_equal(in_memory[name], as_mlx(value)), name


def test_important_columns_are_met_more_closely() -> None:
    w, packing = drawn(128, 512), Packing(4, 64)
    importance = np.where(np.arange(512) % 8 == 0, 100.0, 1.0)
    plain, weighted = (unpacked(pack_rows(w, packing, True, counts), packing) - w for counts in (None, importance))
    assert rms(weighted[:, ::8]) < 0.75 * rms(plain[:, ::8])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.37, 3e-9, 1e4])
def test_groups_of_equal_weights(value: float) -> None:
    w, packing = np.full((2, 64), value, np.float32), Packing(4, 64)
    for search in (False, True):
        out = unpacked(pack_rows(w, packing, search), packing)
        assert np.abs(out - w).max() <= max(2**-8 * abs(value), 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_numbers_are_refused(bad: float) -> None:
    w = drawn(4, 64)
    w[2, 3] = bad
    with pytest.raises(QuantizationError, match="not finite"):
        pack_rows(w, Packing(4, 64))


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_the_modes_without_biases_are_mlxs_own(mode: str, bits: int, group_size: int) -> None:
    w, packing = drawn(8, 128), Packing(bits, group_size, mode)
    packed = pack(mx.array(w), packing)
    weight, scales = mx.quantize(mx.array(w), group_size, bits, mode=mode, stream=mx.cpu)
    assert mx.array_equal(packed["weight"], weight) and mx.array_equal(packed["scales"], scales)
    streamed = pack_rows(w, packing)
    assert (streamed["weight"] == np.array(weight)).all() and set(streamed) == {"weight", "scales"}


def test_bfloat16_rounds_as_mlx_does() -> None:
    pattern = np.random.default_rng(0).integers(0, 2**32, 20000, np.uint64).astype(np.uint32)
    pattern = np.concatenate([pattern, np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x80000000], np.uint32)])  # ties
    x = pattern.view(np.float32)
    x = x[np.isfinite(x)]
    assert (to_bf16(x) == np.array(mx.array(x).astype(mx.bfloat16).view(mx.uint16))).all()
    assert (from_bf16(to_bf16(x)) == np.array(mx.array(x).astype(mx.bfloat16).astype(mx.float32))).all()


def test_fp8_means_what_mlx_reads() -> None:
    byte = np.arange(256, dtype=np.uint8)
    ours, theirs = to_float32(byte, "F8_E4M3"), np.array(mx.from_fp8(mx.array(byte), mx.float32))
    number = ~np.isnan(ours)
    assert number.sum() == 254 and (ours[number] == theirs[number]).all()
