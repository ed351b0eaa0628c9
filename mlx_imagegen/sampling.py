"""Schedules and solvers, and the denoise loop.

A `Schedule` says which sigmas the loop goes through and what timestep the model reads at each; a solver, how x moves
from one to the next. `denoise` is a generator of steps: progress bars, previews and cancelling belong to whoever
iterates. It times each step and evaluates once per step, inside the clock, so that a step's seconds are real.
Must not know: families, guidance, what x looks like.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from .errors import ConfigError
from .escaping import shown
from .loading.config import EXPONENT, MANY, POSITIVE, Config, Range
from .precision import SOLVER_DTYPE

SHIFT_TYPES = ("exponential", "linear")  # whether mu is the log of a dynamic shift, or the shift
EMPIRICAL_TOKENS = 4300  # of a picture; more are beyond FLUX.2's measurements at few steps


@dataclass(frozen=True)
class FlowMatchConfig(Config):
    """scheduler/scheduler_config.json: FlowMatchEulerDiscreteScheduler, for FLUX.1 and Qwen-Image."""

    # Other ways to space the steps, which no published model of these families takes.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        "invert_sigmas use_beta_sigmas use_exponential_sigmas use_karras_sigmas stochastic_sampling".split()
    )

    shift: Annotated[float, POSITIVE]
    use_dynamic_shifting: bool
    num_train_timesteps: int = 1000
    base_image_seq_len: Annotated[int, MANY] = 256
    max_image_seq_len: Annotated[int, MANY] = 4096
    base_shift: Annotated[float, EXPONENT] = 0.5
    max_shift: Annotated[float, EXPONENT] = 1.15
    shift_terminal: Annotated[float, Range(0, 0.999)] | None = None
    time_shift_type: str = "exponential"

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        off = (
            {"shift_terminal": None} if data.get("shift_terminal") is False else {}
        )  # as Qwen-Image-Layered's file says
        config = super().read(data | off, where)
        kind = data.get("_class_name", "FlowMatchEulerDiscreteScheduler")
        odd = [f"'{name}' is on" for name in sorted(cls.IGNORED) if data.get(name)]
        if kind != "FlowMatchEulerDiscreteScheduler" or odd:
            raise ConfigError(
                f"{where}: {odd[0] if odd else 'this is a ' + shown(kind)}, which this library does not have; it would"
                " make another picture than the model's own. Take the file from the model's repository."
            )
        if config.base_image_seq_len == config.max_image_seq_len:
            raise ConfigError(f"{where}: 'base_image_seq_len' equals 'max_image_seq_len': no line goes through both.")
        if config.use_dynamic_shifting and config.time_shift_type not in SHIFT_TYPES:
            raise ConfigError(
                f"{where}: time_shift_type '{config.time_shift_type}' is not known; FLUX.1 and Qwen-Image use "
                "'exponential', Qwen-Image-Layered 'linear'. Take the file from the model's repository."
            )
        return config


@dataclass(frozen=True)
class Schedule:
    sigmas: tuple[float, ...]  # steps + 1 values, the last one is 0
    timesteps: tuple[float, ...]  # what the model reads, 0..1000, one a step

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def from_strength(self, strength: float) -> "Schedule":
        """The part of the schedule that changes a given picture by `strength`; diffusers' count of steps."""
        start = int(max(self.steps - min(self.steps * strength, self.steps), 0))
        return replace(self, sigmas=self.sigmas[start:], timesteps=self.timesteps[start:])


@dataclass(frozen=True)
class Step:
    index: int
    x: mx.array  # after the step
    denoised: mx.array  # the model's present idea of the finished x
    seconds: float


Solver = Callable[[mx.array, mx.array, int], mx.array]  # (x, velocity, index of the step) -> the next x


def euler(schedule: Schedule) -> Solver:
    """x + (next sigma - sigma) * velocity."""

    def step(x: mx.array, velocity: mx.array, index: int) -> mx.array:
        return x + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * velocity

    return step


def flash(
    schedule: Schedule, noise: Callable[[int], mx.array], scales: tuple[float, float], clip: float = 0.0
) -> Solver:
    """Fresh noise on the model's idea of the picture, as much as the next sigma says.

    `noise(index)`: unit normals in x's layout, asked for once a step. Their scale goes evenly from the first of
    `scales` to the second; `clip` cuts them off at that many standard deviations (0: not at all).
    """
    strengths = np.linspace(*scales, schedule.steps)

    def step(x: mx.array, velocity: mx.array, index: int) -> mx.array:
        sigma, following = schedule.sigmas[index : index + 2]
        denoised = x - sigma * velocity
        if following == 0:
            return denoised
        drawn = noise(index)
        if clip:
            limit = clip * mx.std(drawn, ddof=1)
            drawn = mx.clip(drawn, -limit, limit)
        return following * float(strengths[index]) * drawn + (1 - following) * denoised

    return step


class UniPC:
    """The unified predictor-corrector of order 2 (bh2) on the model's idea of the picture. One instance walks one
    schedule.

    Each step first corrects x with what the model says there, then predicts the next x; the first and the last
    prediction are of order 1. Coefficients are float64 numbers, x and the pictures float32.
    """

    def __init__(self, schedule: Schedule):
        self._sigmas = schedule.sigmas
        with np.errstate(divide="ignore"):  # the last sigma is 0: its lambda is infinite, and means: all of the picture
            self._lambdas = [float(np.log((1 - sigma) / np.float64(sigma))) for sigma in self._sigmas]
        self._pictures: list[mx.array] = []  # the last two
        self._x: mx.array | None = None  # where the last prediction started
        self._order = 0  # of the last prediction

    def __call__(self, x: mx.array, velocity: mx.array, index: int) -> mx.array:
        picture = x - self._sigmas[index] * velocity
        if self._x is not None:
            x = self._corrected(self._x, picture, index)
        self._pictures = [*self._pictures, picture][-2:]
        self._order = min(2, len(self._sigmas) - 1 - index, index + 1)
        self._x = x
        return self._predicted(x, index)

    def _predicted(self, x: mx.array, index: int) -> mx.array:
        """x at sigma index -> index + 1."""
        h, decay = self._interval(index)
        latest = self._pictures[-1]
        out = self._drift(x, latest, index, decay)
        if self._order == 2:
            slope = (self._pictures[-2] - latest) / self._ratio(index, h)
            out = out - (1 - self._sigmas[index + 1]) * decay * 0.5 * slope
        return out

    def _corrected(self, x: mx.array, picture: mx.array, index: int) -> mx.array:
        """The last prediction, made from x, again, now that the picture at its end is known."""
        start = index - 1
        h, decay = self._interval(start)
        latest = self._pictures[-1]
        out = self._drift(x, latest, start, decay)
        weights, slopes = [0.5], [picture - latest]
        if self._order == 2:
            ratio = self._ratio(start, h)
            first = decay / -h - 1
            moments = [first / decay, (first / -h - 0.5) * 2 / decay]
            weights = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], moments).tolist()
            slopes = [(self._pictures[-2] - latest) / ratio, *slopes]
        for weight, slope in zip(weights, slopes, strict=True):
            out = out - (1 - self._sigmas[index]) * decay * weight * slope
        return out

    def _interval(self, start: int) -> tuple[float, float]:
        """The step from sigma `start` in lambda, and expm1 of it backwards."""
        h = self._lambdas[start + 1] - self._lambdas[start]
        return h, float(np.expm1(-h))

    def _ratio(self, start: int, h: float) -> float:
        """How far back the picture before `start` lies, in units of the step."""
        return (self._lambdas[start - 1] - self._lambdas[start]) / h

    def _drift(self, x: mx.array, picture: mx.array, start: int, decay: float) -> mx.array:
        """The first-order step, exact if the picture does not change."""
        sigma, following = self._sigmas[start : start + 2]
        return (following / sigma) * x - (1 - following) * decay * picture


def denoise(
    velocity: Callable[[mx.array, int], mx.array], x: mx.array, schedule: Schedule, solver: Solver
) -> Iterator[Step]:
    """Walks the schedule; `velocity(x, index)` is the model. The solver's state is float32 (precision.py)."""
    x = x.astype(SOLVER_DTYPE)
    for index in range(schedule.steps):
        started = time.perf_counter()
        v = velocity(x, index).astype(SOLVER_DTYPE)
        denoised = x - schedule.sigmas[index] * v
        x = solver(x, v, index)
        mx.eval(x, denoised)  # both: what is left to compute, no other thread could (a preview's, say)
        yield Step(index, x, denoised, time.perf_counter() - started)


def flow_match_schedule(
    config: FlowMatchConfig, steps: int, tokens: int, mu: float | None = None, own_sigmas: Sequence[float] = ()
) -> Schedule:
    """Rectified flow: evenly spaced sigmas, shifted by the picture's size or by a constant, the last one moved if
    asked. `mu`: the log of the shift, or the shift itself where the config's type is linear, where it does not follow
    from the config's two points. `own_sigmas`: a distilled model's, in place of evenly spaced ones; for another number
    of steps, evenly picked between them."""
    sigmas = np.linspace(1.0, 1 / steps, steps)
    if own_sigmas:
        places = np.linspace(0, len(own_sigmas) - 1, steps)
        sigmas = np.interp(places, range(len(own_sigmas)), own_sigmas)
    mu = _mu(config, tokens) if mu is None else mu
    dynamic = mu if config.time_shift_type == "linear" else float(np.exp(mu))
    factor = dynamic if config.use_dynamic_shifting else config.shift
    sigmas = factor * sigmas / (1 + (factor - 1) * sigmas)
    if config.shift_terminal and steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - config.shift_terminal) / (1 - sigmas[-1])
    timesteps = sigmas * config.num_train_timesteps
    return Schedule((*map(float, sigmas), 0.0), tuple(map(float, timesteps)))


def timesteps_schedule(timesteps: Sequence[float]) -> Schedule:
    """The steps of a distilled model, given one by one (0..1000, falling): sigma is t / 1000."""
    return Schedule((*(t / 1000 for t in timesteps), 0.0), tuple(map(float, timesteps)))


def shifted_schedule(steps: int, shift: float) -> Schedule:
    """diffusers' FlowMatchEulerDiscreteScheduler: the range is shifted, and the even steps in it again."""
    sigmas = [_shifted(sigma, shift) for sigma in np.linspace(1, _shifted(0.001, shift), steps).tolist()]
    return Schedule((*sigmas, 0.0), tuple(sigma * 1000 for sigma in sigmas))


def twice_shifted_schedule(steps: int, shift: float) -> Schedule:
    """HiDream-O1's UniPC: the largest sigma is shifted, and the even steps down from it are shifted again; the model is
    given whole timesteps, so that a sigma is not its timestep / 1000."""
    sigmas = [_shifted(sigma, shift) for sigma in np.linspace(_shifted(0.999, shift), 0, steps + 1)[:-1].tolist()]
    return Schedule((*sigmas, 0.0), tuple(float(int(sigma * 1000)) for sigma in sigmas))


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def empirical_mu(tokens: int, steps: int) -> float:
    """FLUX.2's log of the shift: lines through measurements at 10 and at 200 steps, and between them by steps. Above
    4300 tokens the second line alone, so that mu falls there for few steps."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > EMPIRICAL_TOKENS:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / (200 - 10)
    return slope * steps + many - 200 * slope


def _mu(config: FlowMatchConfig, tokens: int) -> float:
    """The log of the shift for a picture of `tokens` tokens: a straight line through the config's two points."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return tokens * slope + config.base_shift - slope * config.base_image_seq_len
