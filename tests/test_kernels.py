"""The kernel choice: measured once, remembered, shown, and never changed behind a seed's back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import kernels, load
from mlx_imagegen.layers import linear
from mlx_imagegen.layers.linear import DENSE, PACKED, Linear, Packing, default_kernel, packed_matmul
from mlx_imagegen.packing.affine import pack
from tests.tiny import draw_flux

OTHER = DENSE if default_kernel() == PACKED else PACKED


def packed_layer(bits: int = 4, rows: int = 32, columns: int = 128) -> Linear:
    layer = Linear(columns, rows)
    weight = mx.random.normal((rows, columns), key=mx.random.key(bits))
    layer.pack(Packing(bits, 64))
    for name, value in pack(weight, layer.packing).items():  # type: ignore[arg-type]
        layer[name] = value.astype(mx.float32) if name != "weight" else value
    return layer


def pretend(monkeypatch: pytest.MonkeyPatch, ratio: float) -> list[tuple[Any, ...]]:
    """Measuring gives the other kernel as `ratio` times as fast as the usual one. The calls are noted."""
    calls: list[tuple[Any, ...]] = []

    def measure(*arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        return {default_kernel(): 1.0, OTHER: 1.0 / ratio}

    monkeypatch.setattr(kernels, "measure", measure)
    return calls


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, default_kernel()), (1.04, default_kernel()), (1.06, OTHER)])
def test_the_faster_one_if_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ratio: float, expected: str
) -> None:
    calls, layer = pretend(monkeypatch, ratio), packed_layer()
    said = kernels.choose([(layer, 100)], mx.float32, tmp_path / "kernels.json")
    assert layer.kernel == expected and len(calls) == 1
    assert said == f"{expected} for 1 layer (measured now)"


def test_what_was_measured_is_kept_even_if_it_would_come_out_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "deep" / "kernels.json"
    pretend(monkeypatch, 2.0)
    kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    calls, layer = pretend(monkeypatch, 0.5), packed_layer()
    said = kernels.choose([(layer, 120)], mx.float32, cache)  # of the same power of two
    assert not calls and layer.kernel == OTHER and said == f"{OTHER} for 1 layer (as measured before)"


def test_each_kind_of_product_has_a_choice_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, cache = pretend(monkeypatch, 1.0), tmp_path / "kernels.json"
    for layer, tokens, dtype in (
        (packed_layer(), 100, mx.float32), (packed_layer(), 200, mx.float32), (packed_layer(), 100, mx.bfloat16),
        (packed_layer(8), 100, mx.float32), (packed_layer(rows=64), 100, mx.float32),
        (packed_layer(columns=256), 100, mx.float32),
    ):  # fmt: skip
        kernels.choose([(layer, tokens)], dtype, cache)
    assert len(calls) == 6 and len(json.loads(cache.read_text())) == 6


def test_a_few_tokens_are_not_worth_unpacking_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, layer = pretend(monkeypatch, 1.0), packed_layer()
    kernels.choose([(layer, 1)], mx.float32, tmp_path / "kernels.json")
    assert layer.kernel == PACKED and not calls


def test_dense_layers_have_no_choice(tmp_path: Path) -> None:
    assert kernels.choose([(Linear(8, 8), 100)], mx.float32, tmp_path / "kernels.json") is None
    assert not (tmp_path / "kernels.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"kernel": "gone"}}', '{"a": 3}'])
def test_a_damaged_cache_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "kernels.json"
    cache.write_text(text)
    calls = pretend(monkeypatch, 1.0)
    kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    assert len(calls) == 1 and len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, 1.0)
    (tmp_path / "file").write_text("")
    said = kernels.choose([(packed_layer(), 100)], mx.float32, tmp_path / "file" / "kernels.json")
    assert said is not None and "another run may choose otherwise" in said


def test_ctrl_c_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, 1.0)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kernels.choose([(packed_layer(), 100)], mx.float32, tmp_path / "kernels.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_both_ways_give_the_same_product(bits: int) -> None:
    layer = packed_layer(bits)
    x = mx.random.normal((40, 128), key=mx.random.key(9))
    assert layer.packing is not None
    ways = [
        packed_matmul(x, layer.weight, layer.scales, layer.biases, layer.packing, kernel) for kernel in (PACKED, DENSE)
    ]
    assert float(mx.max(mx.abs(ways[0] - ways[1]))) < 1e-4


def test_measuring_times_both(tmp_path: Path) -> None:
    seconds = kernels.measure(16, 64, 128, Packing(4, 64), mx.float32)
    assert set(seconds) == {PACKED, DENSE} and all(0 < value < 10 for value in seconds.values())


def test_a_picture_says_what_was_chosen_and_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = draw_flux(tmp_path / "model")
    asked = {"seed": 1, "steps": 1, "width": 64, "height": 64, "max_sequence_length": 16}
    pictures = []
    for ratio in (2.0, 0.5):  # the second run would measure the opposite
        pretend(monkeypatch, ratio)
        result = load(folder, quant="q4").generate("a cat", **asked)
        assert result.report.choices["kernels"].startswith(f"{OTHER} for ")
        pictures.append(np.array(result.image))
    assert (pictures[0] == pictures[1]).all()


def test_another_version_or_device_measures_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, cache = pretend(monkeypatch, 1.0), tmp_path / "kernels.json"
    kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "99.0")
        kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "device_info", lambda _: {"device_name": "another chip"})
        kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    assert len(calls) == 3 and len(json.loads(cache.read_text())) == 3


def test_measuring_holds_few_unpacked_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformer is loaded by then, and may leave little room."""
    monkeypatch.setattr(linear, "on_gpu", lambda: True)  # all of the weight is unpacked at once
    monkeypatch.setattr(kernels, "ROUND_SECONDS", 1e9)
    layer, x = packed_layer(rows=512, columns=512), mx.zeros((16, 512))
    mx.eval(layer.parameters(), x)

    def peak(run: Callable[[], Any]) -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        run()
        return mx.get_peak_memory() - before

    parts = layer.weight, layer.scales, layer.biases
    one = peak(lambda: mx.eval(packed_matmul(x, *parts, Packing(4, 64), DENSE)))
    assert peak(lambda: kernels.measure(16, 512, 512, Packing(4, 64), mx.float32)) < 12 * one


@pytest.mark.parametrize("change", [{"system": "macOS 26.3"}, {"matrix units": "not used: they need macOS 26.2"}])
def test_a_choice_does_not_survive_an_upgrade(
    change: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the system, or of what lets MLX use the matrix units: another kernel may be faster then."""
    here = kernels.machine() | {"system": "macOS 26.2", "matrix units": "in use"}
    calls, cache = pretend(monkeypatch, 1.0), tmp_path / "kernels.json"
    for where in (here, here | change, here):
        monkeypatch.setattr(kernels, "machine", lambda where=where: where)
        kernels.choose([(packed_layer(), 100)], mx.float32, cache)
    assert len(calls) == 2 and len(json.loads(cache.read_text())) == 2
