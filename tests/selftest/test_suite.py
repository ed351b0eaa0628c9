"""Every check of the self-test is right here, and wrong when the operation that it is for is."""

import ast
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.layers import activation, conv, stacked
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.layers.norm import LayerNorm, RMSNorm
from mlx_imagegen.layers.strips import Strips
from mlx_imagegen.selftest import attention, check, elementwise, movement, packed, pictures, suite, threads
from mlx_imagegen.selftest.check import Check, compared

SIX = Packing(6, 64)
PACKAGE = Path(suite.__file__).parents[1]


@pytest.fixture(autouse=True)
def one_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take as many seconds as there are packings; test_packed.py has more."""
    monkeypatch.setattr(packed, "packings_in_use", lambda: [SIX])


@pytest.fixture(scope="module")
def usual() -> dict[str, list[Check]]:
    """Each kind's checks as they are here: made once, since they take the longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "packings_in_use", lambda: [SIX])
        return {kind: list(suite.self_test([kind])) for kind in PLACES}


def spoiled(out: Any) -> Any:
    """The last row is 10 % too large; of several arrays, the first one's."""
    if isinstance(out, tuple):
        return spoiled(out[0]), *out[1:]
    rows = out.reshape(-1, out.shape[-1])
    return mx.concatenate([rows[:-1], rows[-1:] * 1.1]).reshape(out.shape).astype(out.dtype)


def spoil(patch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    real = getattr(place, name)
    patch.setattr(place, name, lambda *given, **options: spoiled(real(*given, **options)))


def spoil_group_norm(patch: pytest.MonkeyPatch) -> None:
    real = conv.GroupNorm.__call__

    def broken(self: conv.GroupNorm, x: Strips) -> Callable[[mx.array], mx.array]:
        normed = real(self, x)
        return lambda rows: spoiled(normed(rows))

    patch.setattr(conv.GroupNorm, "__call__", broken)


# Kind of checks -> what is wrong when all of them have to be.
PLACES: dict[str, list[tuple[Any, str]]] = {
    "dense products": [(Linear, "_dense")],
    "packed products": [(packed, "packed_matmul"), (packed, "unpacked")],
    "attention": [(attention, "attend"), (attention, "gated_delta")],
    "norms, rotary positions and activations": [
        (RMSNorm, "__call__"), (LayerNorm, "__call__"), (elementwise, "modulate"), (elementwise, "rotate"),
        (elementwise, "rotate_halves"), *((activation, name) for name in (*elementwise.ACTIVATIONS, "swiglu")),
        (elementwise.products, "gated_sum_of"), (elementwise.products, "gelu_tanh_of"),
        (elementwise.products, "divided_gelu_tanh_of"),
        (elementwise.fused, "residual_sum"), (elementwise, "modulate_parts"), (elementwise, "gated_sum_of_parts"),
        (stacked, "rotate_scaled"), (mx, "sigmoid"),
    ],
    "convolutions": [(conv.Conv2d, "rows")],
    "moving numbers": [
        (mx, "contiguous"), (mx, "pad"), (movement, "doubled"), (movement, "patchified"), (movement, "unpatchified"),
        (movement, "as_mlx"), (Strips, "rows"), (mx, "repeat"), (mx, "where"), (mx, "take"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", PLACES)
def test_each_check_is_right_here_and_wrong_when_its_operation_is(
    kind: str, usual: dict[str, list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in usual[kind]:
        assert each.right, str(each)
    for place, name in PLACES[kind]:
        spoil(monkeypatch, place, name)
    spoil_group_norm(monkeypatch)
    # MLX looks up single rows itself: there is no function to be wrong.
    missed = [str(each) for each in suite.self_test([kind]) if each.right and not each.case.startswith("rows, ")]
    assert not missed


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind != "convolutions"])
def test_a_chip_that_emulates_bfloat16_is_checked_in_float16(
    kind: str, usual: dict[str, list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (check, packed):
        monkeypatch.setattr(module, "emulates_bfloat16", lambda: True)
    checks = list(suite.self_test([kind]))
    narrow = [each for each in checks if "float16" in each.case.replace("bfloat16", "")]
    assert narrow and len(checks) == len(usual[kind]) + len(narrow) and all(each.right for each in checks)


def test_a_gather_of_wrong_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "drawn", lambda dtype, *shape: _shifted(*check.drawn(dtype, *shape)))
    assert not any(each.right for each in movement.gather_checks(mx.float32))


def _shifted(x: mx.array, numbers: np.ndarray) -> tuple[mx.array, np.ndarray]:
    return mx.concatenate([x[1:], x[:1]]), numbers


def test_rounding_to_tf32_is_found() -> None:
    """10 bits of mantissa, as MLX takes of a product's factors where the chip has matrix units."""
    x, w = (check.normals()[start : start + 64 * 512].reshape(64, 512) for start in (0, 99_999))
    rounded = [(each.view(np.uint32) + 0x1000 & 0xFFFFE000).astype(np.uint32).view(np.float32) for each in (x, w)]
    exact = compared("product", "", mx.array(x) @ mx.array(w).T, x @ w.T, check.ROUNDING[mx.float32])
    tf32 = compared("product", "", mx.array(rounded[0]) @ mx.array(rounded[1]).T, x @ w.T, exact.limit)
    assert exact.right and 2 * tf32.limit < tf32.error < 1e-3


def test_threads_and_pictures_are_right_here() -> None:
    for each in suite.self_test(["threads", "demo pictures"]):
        assert each.right, str(each)
    assert len(pictures.stored_pictures()) == 5


@pytest.mark.parametrize("model", threads.MODELS)
def test_what_is_kept_lazy_is_found(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that keeps an array for its next call, unevaluated."""

    def lazy(self: RMSNorm, x: mx.array, scale: mx.array | None = None) -> mx.array:
        weight = getattr(self, "_kept", self.weight)
        self._kept = self.weight + 0
        return mx.fast.rms_norm(x, weight if scale is None else weight * scale, self._eps)

    monkeypatch.setattr(RMSNorm, "__call__", lazy)
    found = threads.thread_check(model)
    assert not found.right and "Stream" in found.case, str(found)


def test_a_request_that_cannot_be_cancelled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "picture", lambda *_, **__: np.zeros((4, 4, 3)))
    assert "went on" in threads.thread_check("flux-demo").case


@pytest.mark.parametrize("path", pictures.stored_pictures(), ids=lambda path: path.stem)
def test_another_picture_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's scale, 5 % off: the scene is still the one asked for."""
    real = mx.fast.scaled_dot_product_attention

    def sharper(*given: Any, scale: float, **options: Any) -> mx.array:
        return real(*given, scale=1.05 * scale, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", sharper)
    found = pictures.picture_check(path)
    assert not found.right, str(found)


# What neither a kernel of the GPU's computes for a picture, nor NumPy could do otherwise.
EXEMPT = {
    "argmax", "arange", "array", "clear_cache", "compile", "default_device", "depends", "eval", "issubdtype",
    "ones_like", "stream", "zeros", "zeros_like",
    # of the solvers, of guidance and of pictures' seams: elementwise and sums, on latents alone
    "abs", "clip", "linalg.norm", "maximum", "minimum", "sqrt", "std", "stack", "sum", "tanh",
    # of LoRAs and of noise, which have references of their own
    "kron", "random.key", "random.normal", "random.split",
    # of packing, on the CPU
    "quantize",
}  # fmt: skip


def used_operations() -> Iterator[str]:
    for folder in ("autoencoders", "families", "layers", "loading", "text", "vision"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if found := re.fullmatch(r"mx\.([a-z_0-9.]+)", name):
                    yield found[1]


def test_every_operation_that_models_use_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    used, called = set(used_operations()) - EXEMPT, set[str]()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            called.add(name)
            return real(*given, **options)

        return call

    for name in used:
        place, _, function = name.rpartition(".")
        module = getattr(mx, place) if place else mx
        monkeypatch.setattr(module, function, counted(name, getattr(module, function)))
    assert len(list(suite.self_test(PLACES))) > 60
    assert {"fast.scaled_dot_product_attention", "quantized_matmul", "conv2d", "from_fp8"} <= used
    unchecked = used - called
    assert not unchecked, f"{unchecked}: add a check to mlx_imagegen/selftest/, or say in EXEMPT why none is needed"


def test_a_limit_is_a_limit() -> None:
    assert Check("product", "", 0.01, 0.01).right
    assert not Check("product", "", 0.02, 0.01).right
    assert not Check("product", "", math.nan, 0.01).right


def test_the_summary_shows_what_is_nearest_to_its_bound() -> None:
    made = [
        Check("norm", "far", 0.5, 1.0), Check("norm", "near", 0.09, 0.1), Check("product", "right", 0.0, 0.1),
        Check("product", "no result", math.nan, 0.1), Check("move", "exact", 0.0, 0.0),
    ]  # fmt: skip
    rows = {row[0]: row for row in suite.summary(made)}
    assert rows["norm"] == ["norm", "2 of 2", "9.0e-02", "1.0e-01", "near"]
    assert rows["product"][1] == "1 of 2" and rows["product"][-1] == "no result" and rows["product"][2] == "nan"
    assert rows["move"][3] == "0"


def test_another_shape_is_no_result() -> None:
    assert not compared("product", "", mx.zeros((2, 3)), np.zeros((2, 4)), 1.0).right
