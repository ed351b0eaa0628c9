"""Row strips must change nothing but memory: every layer against the uncut picture, and against plain formulas."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_imagegen.layers import conv
from mlx_imagegen.layers.conv import Conv2d, GroupNorm, ResidualBlock, self_attention
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.strips import Cut, Strips

CUTS = [1, 2, 3, 5, 11, 64]  # rows a strip, of 11: eleven strips, six, four, three (the last of one row), one, one


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    mx.random.seed(seed)
    for layer in [module, *module.modules()]:
        for name, value in layer.items():
            if isinstance(value, mx.array):
                layer[name] = mx.random.normal(value.shape) / max(1, np.prod(value.shape[1:])) ** 0.5
    return module


def slanted(*shape: int) -> mx.array:
    """Noise on a slope, so that no part of a picture has the statistics of the whole."""
    mx.random.seed(1)
    return mx.random.normal(shape) + 3 * mx.linspace(-1, 1, shape[1])[:, None, None]


def cut(x: mx.array, rows: int) -> Strips:
    return Strips(Cut(rows), [x[:, start : start + rows] for start in range(0, x.shape[1], rows)])


def close(ours: mx.array, expected: mx.array | np.ndarray, tolerance: float = 1e-5) -> None:
    ours, expected = np.array(ours), np.array(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def test_rows_come_from_whichever_strips_they_lie_in() -> None:
    x = mx.arange(11).reshape(1, 11, 1, 1)
    strips = cut(x, 3)
    for start in range(11):
        for stop in range(start + 1, 12):
            assert np.array(strips.rows(start, stop)).ravel().tolist() == list(range(start, stop))
    assert strips.shape == x.shape


def test_dropped_strips_are_gone_and_the_others_keep_their_rows() -> None:
    strips = cut(mx.arange(11).reshape(1, 11, 1, 1), 3)
    strips.drop_above(7)  # row 7 lies in the strip of rows 6..8, which stays
    assert [part.shape[1] for part in strips] == [3, 2]
    assert np.array(strips.rows(6, 11)).ravel().tolist() == [6, 7, 8, 9, 10]
    strips.drop_above(11)
    assert list(strips) == []


def test_cut_by_rows_and_by_memory() -> None:
    assert Cut(4).spans(10, row_bytes=1) == [(0, 4), (4, 8), (8, 10)]
    assert Cut(strip_bytes=350).spans(8, row_bytes=100) == [(0, 3), (3, 6), (6, 8)]
    assert Cut(strip_bytes=10).spans(2, row_bytes=100) == [(0, 1), (1, 2)]  # one row is the least
    assert Cut(strip_bytes=10**9).spans(8, row_bytes=100) == [(0, 8)]
    spans = Cut(strip_bytes=1000).spans(20, row_bytes=100)  # 10 rows would take two tiles of 6 all the same
    assert spans == [(0, 6), (6, 12), (12, 18), (18, 20)]


def plain_conv(layer: Conv2d, x: mx.array) -> mx.array:
    return mx.conv2d(mx.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), layer.weight) + layer.bias


@pytest.mark.parametrize("rows", CUTS)
def test_convolution(rows: int) -> None:
    layer, x = randomised(Conv2d(3, 5)), slanted(2, 11, 6, 3)
    close(layer(cut(x, rows)).joined(), plain_conv(layer, x))


@pytest.mark.parametrize("rows", CUTS)
def test_convolution_pads_with_zeros_after_what_comes_before_it(rows: int) -> None:
    layer, x = randomised(Conv2d(3, 5)), slanted(2, 11, 6, 3)
    close(layer(cut(x, rows), lambda y: y + 7).joined(), plain_conv(layer, x + 7))


@pytest.mark.parametrize("rows", CUTS)
def test_upsampling_convolution(rows: int) -> None:
    layer, x = randomised(Conv2d(3, 5, upsample=True)), slanted(2, 11, 6, 3)
    close(layer(cut(x, rows)).joined(), plain_conv(layer, mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)))


@pytest.mark.parametrize("height", [10, 11])
@pytest.mark.parametrize("rows", CUTS)
def test_downsampling_convolution(rows: int, height: int) -> None:
    layer, x = randomised(Conv2d(3, 5, downsample=True)), slanted(2, height, 6, 3)
    padded = mx.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    close(layer(cut(x, rows)).joined(), mx.conv2d(padded, layer.weight, stride=2) + layer.bias)


def numpy_group_norm(layer: GroupNorm, x: mx.array, groups: int, eps: float) -> np.ndarray:
    y = np.array(x, np.float64)
    y = y.reshape(*y.shape[:3], groups, -1)
    axes = (1, 2, 4)
    y = (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + eps)
    return y.reshape(x.shape) * np.array(layer.weight) + np.array(layer.bias)


@pytest.mark.parametrize("rows", CUTS)
def test_group_norm_takes_its_statistics_over_the_whole_picture(rows: int) -> None:
    layer, x = randomised(GroupNorm(12, 4, 0.01)), slanted(2, 11, 6, 12)
    normed = layer(cut(x, rows))
    close(normed(x), numpy_group_norm(layer, x, 4, 0.01))


def test_group_norm_does_not_depend_on_the_cut_by_one_bit() -> None:
    layer, x = randomised(GroupNorm(12, 4, 1e-6)), slanted(2, 11, 6, 12)
    first, *others = (np.array(layer(cut(x, rows))(x)) for rows in CUTS)
    assert all((first == other).all() for other in others)


def test_statistics_of_several_strips_are_evaluated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may be in memory: with their squares two strips' bytes each."""
    layer, x = randomised(GroupNorm(12, 4, 1e-6)), slanted(1, 12, 6, 12)
    rows = [x[:, row : row + 1] for row in range(12)]
    whole, fours, single = (
        Strips(Cut(1, strip_bytes=2 * strips * rows[0].nbytes - 1), rows) for strips in (1000, 4, 1)
    )
    calls: list[object] = []
    monkeypatch.setattr(conv.mx, "eval", lambda *arrays: calls.append(arrays))
    layer(whole)
    assert len(calls) == 1
    layer(fours)
    assert len(calls) == 1 + 4, "three times four, and what is left with the result"
    layer(single)
    assert len(calls) == 1 + 4 + 13


def test_group_norm_survives_a_mean_far_from_zero() -> None:
    """E[x²] - E[x]² would lose the variance in float32 here: 1e6 against 1."""
    layer, x = GroupNorm(4, 1, 1e-6), mx.random.normal((1, 64, 64, 4), key=mx.random.key(0)) + 1000
    layer.weight = mx.ones(4)
    close(layer(cut(x, 10))(x), numpy_group_norm(layer, x, 1, 1e-6), tolerance=1e-4)


@pytest.mark.parametrize("outputs", [12, 20])
@pytest.mark.parametrize("rows", CUTS)
def test_residual_block(rows: int, outputs: int) -> None:
    block = randomised(ResidualBlock(lambda dims: GroupNorm(dims, 4, 1e-6), 12, outputs))
    x = slanted(2, 11, 6, 12)

    def half(norm: GroupNorm, layer: Conv2d, y: mx.array) -> mx.array:
        return plain_conv(layer, nn.silu(mx.array(numpy_group_norm(norm, y, 4, 1e-6), mx.float32)))

    skip = block.conv_shortcut(x) if outputs != 12 else x
    expected = skip + half(block.norm2, block.conv2, half(block.norm1, block.conv1, x))
    close(block(cut(x, rows)).joined(), expected)


@pytest.mark.parametrize("rows", CUTS)
def test_self_attention(rows: int) -> None:
    q, k, v, out = (randomised(Linear(8, 8), seed) for seed in range(4))
    x = slanted(2, 11, 6, 8)
    ours = self_attention(cut(x, rows), lambda y: (q(y), k(y), v(y)), out).joined()
    tokens = x.reshape(2, 66, 8)
    scores = mx.softmax(q(tokens) @ k(tokens).swapaxes(1, 2) / 8**0.5, axis=-1)
    close(ours, x + out(scores @ v(tokens)).reshape(x.shape))


def test_self_attention_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        sizes.append(q.shape[2] * k.shape[2] * 4)
        return q.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)

    monkeypatch.setattr(conv, "attend", attend)
    x = Strips(Cut(strip_bytes=100_000), [slanted(1, 20, 30, 8)])
    self_attention(x, lambda y: (y, y, y), lambda y: y)
    assert max(sizes) <= 100_000 and len(sizes) == 20  # a row of queries takes 30 * 600 * 4 = 72,000 bytes


STRIP = 8 * 128 * 32 * 4  # bytes; 32 of them make the activation
WORK = 20  # strips' worth of temporaries: nine for the windows, what is padded, normed, activated, and some to spare


def peak_bytes(work: Callable[[], object]) -> int:
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    work()
    return mx.get_peak_memory() - before


@pytest.mark.parametrize(("outputs", "strips"), [(32, 32), (16, 0)])
def test_a_cut_block_holds_two_activations_and_one_strip(outputs: int, strips: int) -> None:
    """Input strips are let go in time, though the caller still names them. Beyond the input, a block of one width holds
    one activation of 32 strips more; a narrowing one trades its input for two halves."""
    block = randomised(ResidualBlock(lambda dims: GroupNorm(dims, 4, 1e-6), 32, outputs))
    x = Strips(Cut(8), [part + 0 for part in cut(slanted(1, 256, 128, 32), 8)])
    mx.eval(block.parameters())
    assert peak_bytes(lambda: block(x)) < (strips + WORK) * STRIP
    assert list(x) == []


def test_a_cut_convolution_gives_its_input_up_as_it_goes() -> None:
    layer = randomised(Conv2d(32, 32))
    x = Strips(Cut(8), [part + 0 for part in cut(slanted(1, 256, 128, 32), 8)])
    mx.eval(layer.parameters())
    assert peak_bytes(lambda: layer(x)) < WORK * STRIP
    assert list(x) == []


def test_a_widening_convolution_is_cut_as_finely_as_its_reader() -> None:
    """Three channels cost little to make, but 64 in one piece could not be given up piece by piece."""
    x = Strips(Cut(strip_bytes=2**20), [slanted(1, 64, 64, 3)])
    parts = [part.nbytes for part in randomised(Conv2d(3, 64))(x)]
    assert max(parts) < 2**20 / 10
