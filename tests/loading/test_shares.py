"""A machine's part of a layer: the numbers of the complete one, read without the rest."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_imagegen.layers.linear import Linear, Packing, unpacked
from mlx_imagegen.layers.sharing import Cut, Sharing, channels, columns, heads, rows
from mlx_imagegen.loading import tensor
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.transforms import PackingOf, WeightTransforms
from mlx_imagegen.loading.weights import open_weights
from mlx_imagegen.packing.affine import pack
from mlx_imagegen.packing.packer import Packer

ROWS, COLUMNS = 96, 256
CUTS = {"rows": rows(heads(ROWS, 3)), "columns": columns(heads(64, 2), channels(COLUMNS - 64))}
PARTS = [(1, 1), (1, 2)]


@pytest.fixture
def weight() -> mx.array:
    return mx.array(np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32))


def saved(folder: Path, weight: mx.array, packing: Packing | None = None) -> Path:
    """A checkpoint of one layer with a bias, called `a`."""
    tensors = {"weight": weight} if packing is None else pack(weight, packing)
    named = {f"a.{name}": value for name, value in tensors.items()} | {"a.bias": mx.arange(float(ROWS))}
    mx.save_safetensors(str(folder / "model.safetensors"), named)
    entry = {} if packing is None else {"a": {"bits": packing.bits, "group_size": packing.group_size}}
    (folder / "config.json").write_text(json.dumps({"quantization": entry} if entry else {}))
    return folder


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Linear(COLUMNS, ROWS)


def loaded(folder: Path, cut: Cut | None, sharing: Sharing, transforms: WeightTransforms | None = None) -> Linear:
    config = read_json(folder / "config.json")
    weights = open_weights("model", open_checkpoint(folder), [Model()], config=config, transforms=transforms)
    component = Component(weights, Model, mx.float32, cuts={"a": cut} if cut else {})
    component.share(sharing)
    layer: Linear = component.load()["a"]
    held = sum(value.nbytes for value in layer.values() if isinstance(value, mx.array))
    assert component.nbytes == held, "the plan's count is what is there"
    return layer


def numbers(layer: Linear) -> np.ndarray:
    if layer.packing is None:
        return np.array(layer.weight)
    return np.array(unpacked({name: layer[name] for name in layer.packing.parts}, layer.packing))


def part(array: np.ndarray, cut: Cut, sharing: Sharing) -> np.ndarray:
    places = np.concatenate([np.arange(*run) for run in sharing.share_of(cut).runs])
    return np.take(array, places, axis=cut.axis)


def check(folder: Path, cut: Cut, parts: tuple[int, ...], transforms: WeightTransforms | None = None) -> list[Linear]:
    """That every machine's part is that of the complete layer, bit for bit."""
    complete = numbers(loaded(folder, None, Sharing(0, parts), transforms))
    layers = []
    for rank in range(len(parts)):
        sharing = Sharing(rank, parts)
        layer = loaded(folder, cut, sharing, transforms)
        np.testing.assert_array_equal(numbers(layer), part(complete, cut, sharing))
        bias = np.arange(float(ROWS)) if cut.axis else part(np.arange(float(ROWS)), cut, sharing)
        np.testing.assert_array_equal(np.array(layer.bias), bias)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", CUTS)
def test_dense(tmp_path: Path, weight: mx.array, kind: str, parts: tuple[int, ...]) -> None:
    check(saved(tmp_path, weight), CUTS[kind], parts)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", CUTS)
def test_packed(tmp_path: Path, weight: mx.array, kind: str, bits: int) -> None:
    layers = check(saved(tmp_path, weight, Packing(bits, 32)), CUTS[kind], (1, 2))
    assert all(layer.packing == Packing(bits, 32) for layer in layers)


@pytest.mark.parametrize("group_size", [64, 128])
def test_a_group_that_is_cut_becomes_finer_ones(tmp_path: Path, weight: mx.array, group_size: int) -> None:
    layers = check(saved(tmp_path, weight, Packing(4, group_size)), CUTS["columns"], (1, 1))
    assert all(layer.packing == Packing(4, 32) for layer in layers)
    even = check(saved(tmp_path, weight, Packing(4, group_size)), columns(heads(COLUMNS, 2)), (1, 1))
    assert all(layer.packing == Packing(4, group_size) for layer in even)


@pytest.mark.parametrize("kind", CUTS)
def test_a_dense_layer_is_packed_in_full_and_then_cut(tmp_path: Path, weight: mx.array, kind: str) -> None:
    """Or its scales would depend on how many machines there are."""
    recipe: PackingOf = lambda *_: Packing(4, 64)  # noqa: E731
    check(saved(tmp_path, weight), CUTS[kind], (1, 1), WeightTransforms((Packer(pack, recipe),)))


def test_rows_of_others_are_not_read(tmp_path: Path, weight: mx.array, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read, plain = saved(tmp_path, weight, Packing(8, 64)), [0], tensor.read_exactly

    def counted(stored: tensor.Tensor, offset: int, target: memoryview) -> None:
        read[0] += len(target)
        plain(stored, offset, target)

    monkeypatch.setattr(tensor, "read_exactly", counted)
    layer = loaded(folder, CUTS["rows"], Sharing(0, (1, 2)))
    assert read[0] == sum(layer[name].nbytes for name in ("weight", "bias")) + 2 * 2 * layer.scales.size  # bf16 on disk


def test_columns_are_read_by_blocks_of_rows(tmp_path: Path, weight: mx.array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.loading.shares.BLOCK_BYTES", 7 * 4 * COLUMNS)  # 96 rows are 13 of 7, and 5
    check(saved(tmp_path, weight), CUTS["columns"], (1, 1))


def test_what_cannot_be_cut_is_refused_with_a_reason(tmp_path: Path, weight: mx.array) -> None:
    folder = saved(tmp_path, weight, Packing(4, 64))
    weights = open_weights("model", open_checkpoint(folder), [Model()], config=read_json(folder / "config.json"))

    def reason(cut: Cut, count: int) -> str | None:
        return Component(weights, Model, mx.float32, cuts={"a": cut}).sharing_refusal(Sharing(0, (1,) * count))

    assert reason(CUTS["rows"], 4) == "'a' has 3 heads or groups of channels"
    assert reason(columns(heads(COLUMNS, 16)), 3) == "'a' is packed in groups of 64, which heads cross"
    assert reason(columns(heads(COLUMNS, 16)), 2) is None and reason(CUTS["rows"], 3) is None
