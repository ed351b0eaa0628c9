"""Which rows and columns a machine has, and that what the machines compute adds up to the complete layer's output."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.sharing import Cut, Sharing, channels, columns, heads, rows, share_of
from tests.shared_out import Ring


def runs(cut: Cut, parts: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    return [Sharing(rank, parts).share_of(cut).runs for rank in range(len(parts))]


def test_heads_stay_in_one_piece() -> None:
    assert runs(rows(heads(96, 3)), (1, 1)) == [((0, 32),), ((32, 96),)]
    assert runs(rows(heads(96, 3)), (2, 1)) == [((0, 64),), ((64, 96),)]


def test_channels_are_cut_between_groups() -> None:
    assert runs(rows(channels(160)), (1, 1)) == [((0, 64),), ((64, 160),)]
    assert runs(rows(channels(7)), (1, 1)) == [((0, 3),), ((3, 7),)], "too odd to be packed"


def test_every_span_is_cut() -> None:
    assert runs(columns(heads(64, 2), channels(128)), (1, 1)) == [((0, 32), (64, 128)), ((32, 64), (128, 192))]


def test_too_few_units_are_noticed() -> None:
    cut = rows(heads(96, 3))
    assert not Sharing(0, (1, 1, 1)).lacks_units(cut)
    assert Sharing(0, (1,) * 4).lacks_units(cut)
    assert Sharing(1, (1, 9)).lacks_units(cut), "a part too small for one head"


@pytest.mark.parametrize("parts", [(1, 1), (1, 2, 1)])
def test_products_add_up_and_the_bias_is_added_once(parts: tuple[int, ...]) -> None:
    dice = np.random.default_rng(0)
    first, second = (dice.standard_normal(shape).astype(np.float32) for shape in ((64, 24), (40, 64)))
    biases = [dice.standard_normal(size).astype(np.float32) for size in (64, 40)]
    x = dice.standard_normal((1, 5, 24)).astype(np.float32)
    wanted = (x.astype(np.float64) @ first.T + biases[0]) @ second.T + biases[1]
    ring, inner = Ring(parts), heads(64, 8)

    def output(sharing: Sharing) -> np.ndarray:
        before, after = Linear(24, 64), Linear(64, 40)
        sharing.mark([("a.before", before), ("a.after", after)], {"*.before": rows(inner), "*.after": columns(inner)})
        (start, stop), *_ = sharing.share_of(rows(inner)).runs
        before.weight, before.bias = mx.array(first[start:stop]), mx.array(biases[0][start:stop])
        after.weight, after.bias = mx.array(second[:, start:stop]), mx.array(biases[1])
        return np.array(after(before(mx.array(x))))

    for out in ring.run(output):
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-5)
    assert ring.sums == [(1, 5, 40)]


def test_other_layers_are_left_alone() -> None:
    layer = Linear(8, 8)
    Sharing(0, (1, 1)).mark([("proj_out", layer)], {"*.proj_out": rows(channels(8))})
    assert share_of(layer) is None and layer.held_shape == (8, 8)
