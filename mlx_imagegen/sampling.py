"""Schedules and solvers, and the denoise loop.

A `Schedule` says which sigmas the loop walks, what the model is told at each, and by which solver. `denoise` is a
generator of steps: progress bars, previews, timing and cancelling belong to whoever iterates. It evaluates once a step,
inside the clock, so that a step's seconds are real.
Must not know: families, guidance, what x looks like.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import mlx.core as mx
import numpy as np

from .config import Config
from .errors import ConfigError
from .precision import SOLVER_DTYPE


@dataclass(frozen=True)
class FlowMatchConfig(Config):
    """scheduler/scheduler_config.json: FlowMatchEulerDiscreteScheduler, for FLUX.1 and Qwen-Image."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        "invert_sigmas use_beta_sigmas use_exponential_sigmas use_karras_sigmas stochastic_sampling".split()
    )

    shift: float
    use_dynamic_shifting: bool
    num_train_timesteps: int = 1000
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"


@dataclass(frozen=True)
class Schedule:
    sigmas: tuple[float, ...]  # steps + 1 values, the last one is 0
    timesteps: tuple[float, ...]  # what the model is told, 0..1000, one a step

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
    denoised: mx.array  # the model's present idea of the finished x; costs nothing unless it is looked at
    seconds: float


class Solver(Protocol):
    def __call__(self, x: mx.array, velocity: mx.array, index: int) -> mx.array: ...


def euler(schedule: Schedule) -> Solver:
    """x + (next sigma - sigma) * velocity."""

    def step(x: mx.array, velocity: mx.array, index: int) -> mx.array:
        return x + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * velocity

    return step


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
        mx.eval(x)
        yield Step(index, x, denoised, time.perf_counter() - started)


def flow_match_schedule(config: FlowMatchConfig, steps: int, tokens: int) -> Schedule:
    """Rectified flow: evenly spaced sigmas, shifted by the picture's size or by a constant, the last one moved if asked."""
    sigmas = np.linspace(1.0, 1 / steps, steps)
    factor = float(np.exp(_mu(config, tokens))) if config.use_dynamic_shifting else config.shift
    sigmas = factor * sigmas / (1 + (factor - 1) * sigmas)
    if config.shift_terminal and steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - config.shift_terminal) / (1 - sigmas[-1])
    timesteps = sigmas * config.num_train_timesteps
    return Schedule((*map(float, sigmas), 0.0), tuple(map(float, timesteps)))


def _mu(config: FlowMatchConfig, tokens: int) -> float:
    """The log of the shift for a picture of `tokens` tokens: a straight line through the config's two points."""
    if config.time_shift_type != "exponential":
        raise ConfigError(
            f"scheduler_config.json: time_shift_type '{config.time_shift_type}' is not known; FLUX.1 and Qwen-Image use "
            "'exponential'."
        )
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return tokens * slope + config.base_shift - slope * config.base_image_seq_len
