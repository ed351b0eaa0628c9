"""MLX's limits while a run lasts, and what is said when memory runs out in spite of the plan."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from conftest import Ran

from mlx_imagegen import limits, load
from mlx_imagegen.errors import InsufficientMemoryError
from mlx_imagegen.limits import CACHE_LIMIT_BYTES, CPU_CACHE_LIMIT_BYTES, is_out_of_memory, run_limits
from mlx_imagegen.machine import GIB, MemoryLimit
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.plan import plan
from tests.draw import drawn_data
from tests.tiny import draw_flux

WORKING_SET = 48 * GIB
METAL_ERROR = "[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMem…)"
SMALL: dict[str, Any] = {"seed": 1, "steps": 1, "width": 64, "height": 64}


class Allocator:
    """MLX's three limits, as on a Mac."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.limits = {"memory": 72 * GIB, "wired": 0, "cache": 72 * GIB}
        for name in self.limits:
            monkeypatch.setattr(mx, f"set_{name}_limit", lambda size, name=name: self._set(name, size))
        monkeypatch.setattr(mx, "synchronize", lambda: None)
        monkeypatch.setattr(limits, "on_gpu", lambda: True)
        monkeypatch.setattr(limits, "memory_limit", lambda: MemoryLimit(WORKING_SET, WORKING_SET, 64 * GIB, True))

    def _set(self, name: str, size: int) -> int:
        before, self.limits[name] = self.limits[name], size
        return before


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    return Allocator(monkeypatch)


def test_a_run_is_wired_and_limited_to_the_working_set_and_all_is_put_back(allocator: Allocator) -> None:
    with run_limits(10**9):
        assert allocator.limits == {"memory": WORKING_SET, "wired": WORKING_SET, "cache": CACHE_LIMIT_BYTES}
    assert allocator.limits == {"memory": 72 * GIB, "wired": 0, "cache": CACHE_LIMIT_BYTES}
    with pytest.raises(KeyboardInterrupt), run_limits(10**9):
        raise KeyboardInterrupt
    assert allocator.limits["wired"] == 0


def test_of_two_runs_the_last_puts_back(allocator: Allocator) -> None:
    first, second = run_limits(3 * GIB), run_limits(5 * GIB)
    first.__enter__()
    second.__enter__()
    assert allocator.limits["cache"] == 5 * GIB
    second.__exit__(None, None, None)
    assert (allocator.limits["cache"], allocator.limits["wired"]) == (3 * GIB, WORKING_SET)
    first.__exit__(None, None, None)
    assert (allocator.limits["cache"], allocator.limits["wired"]) == (CACHE_LIMIT_BYTES, 0)


def test_the_cpu_s_cache_stays_small_and_its_memory_unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory", "wired"):
        monkeypatch.setattr(mx, f"set_{name}_limit", lambda _: pytest.fail("there is no GPU"))
    sizes: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", sizes.append)
    with run_limits(5 * GIB):
        pass
    assert set(sizes) == {CPU_CACHE_LIMIT_BYTES}


def test_a_run_s_cache_holds_what_comes_and_goes_in_its_largest_picture(
    allocator: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller one would hand large buffers back to the system and take them again in every block."""
    monkeypatch.setattr("mlx_imagegen.planning.plan.on_gpu", lambda: True)
    monkeypatch.setattr("mlx_imagegen.planning.plan.STREAMS", 2 * 10**5)
    pipeline, seen = load(drawn_data() / "flux" / "schnell"), list[int]()
    jobs = [pipeline.jobs("a cat", **SMALL | {"width": width})[0] for width in (64, 96)]
    for _ in pipeline.stream(jobs, lambda _: seen.append(allocator.limits["cache"])):
        pass
    working = [plan(pipeline.family, job.settings).working_bytes for job in jobs]
    assert CACHE_LIMIT_BYTES < working[0] < working[1] and set(seen) == {working[1]}
    assert allocator.limits == {"memory": 72 * GIB, "wired": 0, "cache": CACHE_LIMIT_BYTES}


def test_a_stopped_stream_puts_the_limits_back(allocator: Allocator) -> None:
    pipeline = load(drawn_data() / "flux" / "schnell")
    results = pipeline.stream(pipeline.jobs("a cat", **SMALL | {"seed": [1, 2]}))
    next(results)
    assert allocator.limits["wired"] == WORKING_SET
    results.close()
    assert allocator.limits["wired"] == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(METAL_ERROR), True),
        (RuntimeError("[metal::malloc] Unable to allocate 123 bytes."), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 5 bytes which is greater than the maximum allowed buffer "
                      "size of 4 bytes."), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (InsufficientMemoryError("needs more"), False),
        (RuntimeError("There is no Stream(cpu, 1) in current thread."), False),
    ],
)  # fmt: skip
def test_the_end_of_memory_is_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def fail_in_decode(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def decode(*_: object) -> mx.array:
        raise error

    monkeypatch.setattr("mlx_imagegen.families.flux1.family.Flux1.decode", decode)


@pytest.mark.parametrize("resident", [True, False])
def test_running_out_is_a_refusal_that_names_what_would_fit(
    resident: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the tiny transformer is the largest stage, and a smaller one helps.
    monkeypatch.setattr("mlx_imagegen.planning.plan.DECODED_COPIES", 0)
    monkeypatch.setattr("mlx_imagegen.planning.plan.STRIP_BYTES", 0)
    pipeline = load(draw_flux(tmp_path / "model"), resident=resident)
    expected = pixels(load(tmp_path / "model"))
    with monkeypatch.context() as patch:
        fail_in_decode(patch, RuntimeError(METAL_ERROR))
        with pytest.raises(InsufficientMemoryError, match=r"memory ran out: .*quant q8 would fit") as caught:
            pixels(pipeline)
    assert METAL_ERROR in str(caught.value.__cause__)
    assert not any(component.loaded for component in pipeline.family.components.values())
    assert pixels(pipeline) == expected, "what was computed last is not used again"


def pixels(pipeline: Pipeline) -> bytes:
    return pipeline.generate("a cat", **SMALL).image.tobytes()


def test_the_command_line_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]) -> None:
    fail_in_decode(monkeypatch, RuntimeError(METAL_ERROR))
    ran = cli("a cat", "--model", "flux-demo", "--steps", "1", "--quiet", "-o", "a.png")
    assert ran.code == 2 and ran.err.count("\n") == 1 and "memory ran out: flux-demo takes about" in ran.err


def test_other_failures_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in_decode(monkeypatch, RuntimeError("no such kernel"))
    with pytest.raises(RuntimeError, match="no such kernel"):
        pixels(load(drawn_data() / "flux" / "schnell"))
