"""What the contract itself does: guidance between two branches, and what is kept for the next picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_imagegen.families.base import Denoiser, LastValueCache

MEGABYTE = 2**20


@dataclass(eq=False)
class Plain(Denoiser[Any]):
    """Its branches' velocities come from a function of the branch alone."""

    function: Callable[[Any], mx.array]

    def branch_velocity(self, x: mx.array, index: int, branch: Any) -> mx.array:
        return self.function(branch)


NOTHING: Any = None  # in the transformer's place


def test_guidance_is_float32_whatever_the_branches_are() -> None:
    """In bf16 a scale of 4 would make the rounding of both velocities four times as large."""
    wanted, unwanted = (mx.random.normal((1, 64, 8), key=mx.random.key(seed)).astype(mx.bfloat16) for seed in (1, 2))
    v = Plain(NOTHING, [wanted, unwanted], 4.0, lambda branch: branch).velocity(wanted, 0)
    exact = unwanted.astype(mx.float32) + 4.0 * (wanted.astype(mx.float32) - unwanted.astype(mx.float32))
    assert v.dtype == mx.float32 and mx.array_equal(v, exact)


def test_the_second_branch_takes_the_first_ones_room() -> None:
    assert peak(2.0) < 1.3 * peak(None)


def test_only_the_latest_is_kept() -> None:
    made: list[str] = []
    latest = LastValueCache()
    for key in (None, None, "a", "a", "b", "a"):
        assert latest.get(key, lambda key=key: made.append(f"of {key}") or f"of {key}") == f"of {key}"  # type: ignore[misc]
    assert made == ["of None", "of a", "of b", "of a"]
    latest.forget()
    latest.get("a", lambda: made.append("again") or "again")  # type: ignore[func-returns-value]
    assert made[-1] == "again"


def peak(negative: float | None) -> int:
    """Bytes at once, where a branch holds eight large activations."""
    mx.reset_peak_memory()
    branches = [1.0] if negative is None else [1.0, negative]
    mx.eval(Plain(NOTHING, branches, 4.0, activations(MEGABYTE)).velocity(mx.zeros(1), 0))
    return mx.get_peak_memory()


def activations(size: int) -> Callable[[float], mx.array]:
    def velocity(branch: float) -> mx.array:
        parts = [mx.random.normal((size,), key=mx.random.key(index)) * branch for index in range(8)]
        return mx.sum(mx.concatenate(parts), keepdims=True)

    return velocity
