"""The three samplers against trajectories of upstream's schedulers
(tests/data/hidream_o1/recorded/schedulers.safetensors)."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.sampling import Schedule, Solver, UniPC, euler, flash, timesteps_schedule, twice_shifted_schedule

RECORDED = Path(__file__).parents[2] / "data" / "hidream_o1" / "recorded" / "schedulers.safetensors"
FIXED = manifests()["hidream-o1-dev"].extras["sampling"]["timesteps"]


@pytest.fixture(scope="module")
def want() -> dict[str, mx.array]:
    return mx.load(str(RECORDED))


def walk(name: str, want: dict[str, mx.array], schedule: Schedule, solver: Solver) -> None:
    """Every step from the recorded x, and the whole way from the first one."""
    assert np.abs(np.array(schedule.sigmas) - np.array(want[f"{name}.sigmas"])).max() < 1e-7
    assert list(schedule.timesteps) == np.array(want[f"{name}.timesteps"]).tolist()
    x = want[f"{name}.z"][0]
    for index, output in enumerate(want[f"{name}.model_output"]):
        x = solver(x, output, index)
        assert float(mx.max(mx.abs(x - want[f"{name}.z"][index + 1]))) < 2e-5, f"step {index}"


@pytest.mark.parametrize(
    ("name", "steps", "shift"),
    [("unipc_s3_n50", 50, 3.0), ("unipc_s1_n50", 50, 1.0), ("unipc_s3_n20", 20, 3.0), ("unipc_s3_n4", 4, 3.0)],
)
def test_unipc(name: str, steps: int, shift: float, want: dict[str, mx.array]) -> None:
    schedule = twice_shifted_schedule(steps, shift)
    walk(name, want, schedule, UniPC(schedule))


def test_unipc_sigmas_are_not_timesteps() -> None:
    schedule = twice_shifted_schedule(50, 3.0)
    assert all(t == int(t) for t in schedule.timesteps)
    assert any(abs(sigma - t / 1000) > 1e-4 for sigma, t in zip(schedule.sigmas, schedule.timesteps, strict=False))


def test_flow_match(want: dict[str, mx.array]) -> None:
    schedule = timesteps_schedule(FIXED)
    walk("flow_match_28", want, schedule, euler(schedule))


def test_flash(want: dict[str, mx.array]) -> None:
    schedule = timesteps_schedule(FIXED)
    scales = np.array(want["flash_28.s_noise"]).tolist()
    clip = float(want["flash_28.noise_clip_std"][0])
    solver = flash(schedule, lambda index: want["flash_28.noise"][index], (scales[0], scales[-1]), clip)
    walk("flash_28", want, schedule, solver)


def test_flash_asks_for_no_noise_at_the_end(want: dict[str, mx.array]) -> None:
    asked: list[int] = []

    def noise(index: int) -> mx.array:
        asked.append(index)
        return want["flash_28.noise"][index]

    schedule = timesteps_schedule([900, 500, 100])
    solver = flash(schedule, noise, (8.0, 8.0))
    x = want["flash_28.z"][0]
    for index in range(3):
        x = solver(x, x, index)
    assert asked == [0, 1]
