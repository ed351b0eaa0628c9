"""Schedules against diffusers' own lists (tests/data/schedules, from its scheduler objects), and the denoise loop."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.errors import ConfigError
from mlx_imagegen.sampling import FlowMatchConfig, Schedule, denoise, euler, flow_match_schedule

LISTS = json.loads((Path(__file__).parent / "data/schedules/schedules.json").read_text())
FLOW_MATCH = [name for name, entry in LISTS.items() if "config" in entry]


@pytest.mark.parametrize("name", FLOW_MATCH)
def test_flow_match_equals_diffusers(name: str) -> None:
    entry = LISTS[name]
    config = FlowMatchConfig.read(entry["config"], name)
    schedule = flow_match_schedule(config, entry["steps"], entry["image_seq_len"])
    np.testing.assert_allclose(schedule.sigmas, entry["sigmas"], atol=2e-7)
    np.testing.assert_allclose(schedule.timesteps, entry["timesteps"], atol=2e-4)
    assert schedule.sigmas[-1] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_karras_sigmas": True}, "'use_karras_sigmas' is on"),
        ({"invert_sigmas": True}, "'invert_sigmas' is on"),
        ({"_class_name": "DDIMScheduler"}, "this is a DDIMScheduler"),
        ({"base_image_seq_len": 4096}, "'base_image_seq_len' equals"),
        ({"time_shift_type": "cosine"}, "time_shift_type 'cosine'"),
    ],
)
def test_other_schedules_are_refused_rather_than_ignored(change: dict[str, object], words: str) -> None:
    config = {"shift": 3.0, "use_dynamic_shifting": True, "use_karras_sigmas": False}
    assert FlowMatchConfig.read(config, "here").shift == 3.0
    with pytest.raises(ConfigError, match=f"here: {words}"):
        FlowMatchConfig.read(config | change, "here")


@pytest.mark.parametrize(
    ("steps", "strength", "left"), [(4, 1.0, 4), (4, 0.6, 3), (4, 0.5, 2), (28, 0.3, 9), (4, 0.1, 1)]
)
def test_strength_keeps_the_end_of_the_schedule(steps: int, strength: float, left: int) -> None:
    """diffusers: int(steps - steps * strength) steps are left out, at the start."""
    schedule = flow_match_schedule(FlowMatchConfig(shift=1.0, use_dynamic_shifting=False), steps, 1)
    part = schedule.from_strength(strength)
    assert part.steps == left and part.sigmas == schedule.sigmas[-left - 1 :]


def test_denoise_walks_a_straight_line_exactly() -> None:
    """With the true velocity of a straight line from noise to a picture, any schedule ends at the picture."""
    picture, noise = mx.array([1.0, 2.0, 3.0]), mx.array([-1.0, 0.5, 2.0])
    schedule = Schedule((1.0, 0.7, 0.2, 0.0), (1000.0, 700.0, 200.0))
    steps = list(denoise(lambda x, index: noise - picture, noise, schedule, euler(schedule)))
    assert [step.index for step in steps] == [0, 1, 2]
    np.testing.assert_allclose(np.array(steps[-1].x), np.array(picture), atol=1e-6)
    for step in steps:  # at every step the model's idea of the finished picture is the picture
        np.testing.assert_allclose(np.array(step.denoised), np.array(picture), atol=1e-6)


def test_a_step_is_computed_inside_its_clock() -> None:
    """Nothing of a step is left to be computed after it was timed: MLX is lazy, and this is what keeps seconds
    honest."""
    seen = []

    def slow(x: mx.array, index: int) -> mx.array:
        y = mx.random.normal((700, 700))
        for _ in range(20):
            y = y @ y / 700
        return x * y.sum()

    schedule = Schedule((1.0, 0.5, 0.0), (1000.0, 500.0))
    for step in denoise(slow, mx.ones(3), schedule, euler(schedule)):
        before = mx.get_active_memory()
        mx.eval(step.x)
        seen.append((step.seconds, mx.get_active_memory() - before))
    assert all(seconds > 1e-3 and grown == 0 for seconds, grown in seen)
