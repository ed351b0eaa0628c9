"""Parts of a sequence with vectors of their own: split on the CPU, chosen token by token on a GPU; the same numbers."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers.parts import Part, gated_sum_of_parts, modulate_parts
from mlx_imagegen.layers.products import Product

EPS = 1e-6


def drawn(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def both(x: mx.array, parts: list[Part], y: Product, z: mx.array | None) -> list[np.ndarray]:
    return [np.array(modulate_parts(x, parts, 3, EPS)), np.array(gated_sum_of_parts(x, parts, 2, y, z))]


@pytest.mark.parametrize("more", ["nothing", "bias", "second"])
@pytest.mark.parametrize("lengths", [(9,), (3, 6), (2, 4, 3)])
def test_each_token_meets_the_vectors_of_its_part(
    lengths: tuple[int, ...], more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, z = (drawn(2, 9, 16, seed=seed) for seed in (1, 2, 3))
    bias = drawn(16, seed=4)
    parts = [Part(length, drawn(6, 16, seed=5 + index)) for index, length in enumerate(lengths)]
    rows = np.concatenate([np.repeat(np.array(part.rows)[:, None], part.tokens, axis=1) for part in parts], axis=1)
    given = np.array(x, np.float64)
    norm = (given - given.mean(-1, keepdims=True)) / np.sqrt(given.var(-1, keepdims=True) + EPS)
    added = {"nothing": 0, "bias": np.array(bias), "second": np.array(z)}[more]
    wanted = [norm * rows[4] + rows[3], given + rows[2] * (np.array(y) + added)]
    arguments = Product(y, bias if more == "bias" else None), z if more == "second" else None
    ways = [both(x, parts, *arguments)]
    monkeypatch.setattr("mlx_imagegen.layers.parts.on_gpu", lambda: True)
    ways.append(both(x, parts, *arguments))
    if shutil.which("g++"):  # as one kernel
        monkeypatch.setattr("mlx_imagegen.layers.fused.on_gpu", lambda: True)
        ways.append(both(x, parts, *arguments))
    for way in ways:
        for got, want in zip(way, wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)
