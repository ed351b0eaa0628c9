"""Steps of which only the first block is computed: what the others would add is predicted from the steps before.

In: the picture's tokens before and after the first block, at each step and branch. Out: the tokens after the last one.
First-block caching (ParaAttention, DBCache): where the first block changes its input much as it did at the last step
that was computed, the other blocks add what they added there, drawn on in a straight line through the last two such
steps (TaylorSeer of order 1). Where a checkpoint's manifest has a polynomial (TeaCache's way), the change from step to
step goes through it and adds up until it reaches the threshold.
The first branch decides for all. What is kept is evaluated. Must not know: which model, schedules.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx

from ..layers.blocks import AfterFirstBlock
from ..precision import compute_dtype

# Arrays of the picture's tokens that a branch keeps or makes: the first block's change, the others' and its slope, and
# the new one of each.
KEPT_ARRAYS = 4
LEAST_WARMUP = 4  # steps that are always computed


@dataclass(frozen=True)
class CacheRule:
    """When steps are predicted; all but the threshold is the manifest's."""

    threshold: float
    warmup_share: float = 1 / 8  # of the steps, computed at the beginning
    in_a_row: int = 3  # steps predicted, at most
    polynomial: tuple[float, ...] = ()  # coefficients, the highest power first
    largest_change: float = float("inf")  # above it a step is computed, for the polynomial was not fitted there

    def warmup(self, steps: int) -> int:
        return max(LEAST_WARMUP, int(steps * self.warmup_share))


@dataclass(frozen=True)
class Computed:
    """What one branch keeps of the last step that was computed."""

    index: int
    change: mx.array  # by the first block
    added: mx.array  # by the others
    slope: mx.array | None = None  # of `added`, a step


@dataclass
class StepCache:
    """Of one picture's loop."""

    rule: CacheRule
    steps: int
    predicted: list[int] = field(default_factory=list)  # indices of steps
    _computed: dict[int, Computed] = field(default_factory=dict)  # by branch
    _latest: mx.array | None = None  # the first block's change at the last step, whether computed or not
    _sum: float = 0.0  # of the polynomial's values since the last step that was computed

    def at(self, index: int, branch: int, computed: bool = False) -> AfterFirstBlock:
        """For the transformer at one step and branch; branches come in order. `computed`: whatever changes, as where a
        branch begins, of which nothing is kept."""

        def after_first(before: mx.array, after: mx.array, others: Callable[[], mx.array]) -> mx.array:
            change = (after - before).astype(compute_dtype())
            if branch == 0 and self._is_predictable(index, change) and not computed:
                self.predicted.append(index)
            if self.predicted[-1:] == [index]:
                return self._prediction(index, branch, after)
            return self._compute(index, branch, change, after, others)

        return after_first

    def forget(self) -> None:
        """Another picture begins, or none."""
        self._computed.clear()
        self._latest, self._sum, self.predicted = None, 0.0, []

    def summary(self) -> str:
        return f"{len(self.predicted)} of {self.steps} steps reused (threshold {self.rule.threshold:g})"

    def _is_predictable(self, index: int, change: mx.array) -> bool:
        last, latest = self._computed.get(0), self._latest
        if self.rule.polynomial:
            mx.eval(change)
            self._latest = change[:1]
        run = index - last.index - 1 if last else 0
        if last is None or index < self.rule.warmup(self.steps) or index == self.steps - 1 or run >= self.rule.in_a_row:
            return False
        if not self.rule.polynomial:
            return relative_change(change[:1], last.change[:1]) < self.rule.threshold
        size = float("inf") if latest is None else relative_change(change[:1], latest)
        self._sum += max(0.0, polynomial_value(self.rule.polynomial, size))
        return size <= self.rule.largest_change and self._sum < self.rule.threshold

    def _prediction(self, index: int, branch: int, after: mx.array) -> mx.array:
        last = self._computed[branch]
        rows = after.shape[0]  # guidance may have ended, and with it a batch's second row
        added = last.added[:rows]
        if last.slope is not None:
            added = added + (index - last.index) * last.slope[:rows]
        return after + added.astype(after.dtype)

    def _compute(
        self, index: int, branch: int, change: mx.array, after: mx.array, others: Callable[[], mx.array]
    ) -> mx.array:
        last = self._computed.pop(branch, None)
        out = others()
        made = Computed(index, change, (out - after).astype(compute_dtype()))
        rows = made.added.shape[0]
        if last is not None and rows <= last.added.shape[0]:
            made = replace(made, slope=(made.added - last.added[:rows]) / (index - last.index))
        mx.eval(out, made.change, made.added, [] if made.slope is None else made.slope)
        self._computed[branch] = made
        if branch == 0:
            self._sum = 0.0
        return out


def polynomial_value(coefficients: Sequence[float], x: float) -> float:
    """By Horner's rule; coefficients from the highest power down."""
    return functools.reduce(lambda value, coefficient: value * x + coefficient, coefficients, 0.0)


def relative_change(x: mx.array, reference: mx.array) -> float:
    """Mean |x - reference| over mean |reference|, in float32: a mean of bf16 is off by up to 0.4 %."""
    x, reference = x.astype(mx.float32), reference.astype(mx.float32)
    change: float = (mx.abs(x - reference).mean() / mx.abs(reference).mean()).item()  # type: ignore[assignment]
    return change
