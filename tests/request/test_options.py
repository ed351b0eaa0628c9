"""Parameters that only some models take: defaults by variant, refusals and notes."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.job import Job, resolve

FULL, DEV, NEWER = (manifests()[name] for name in ("hidream-o1", "hidream-o1-dev", "hidream-o1-dev-2604"))
PICTURE = Image.new("RGB", (100, 80))


def one(manifest: Any = FULL, **parameters: Any) -> Job:
    (job,) = resolve(manifest, 32, "a fox", 1, **parameters)
    return job


def test_defaults_of_the_full_model() -> None:
    job = one()
    assert (job.settings.steps, job.settings.cfg) == (50, 5.0)
    assert job.settings.extras | {"max_sequence_length": 0} == {
        "max_sequence_length": 0, "sampler": "unipc", "shift": 3.0, "noise_scale": (8.0, 8.0)
    }  # fmt: skip
    assert job.negative is not None and job.negative.text == " "


def test_defaults_of_the_distilled_ones() -> None:
    extras = one(DEV).settings.extras
    assert (extras["sampler"], extras["noise_scale"], extras["noise_clip"]) == ("flash", (7.5, 7.5), 2.5)
    assert len(extras["timesteps"]) == 28 and (extras["timesteps"][0], extras["timesteps"][-1]) == (999, 8)
    assert one(DEV).negative is None
    extras = one(NEWER).settings.extras
    assert (extras["sampler"], extras["noise_scale"], extras["noise_clip"]) == ("flash", (8.0, 8.0), 8.0)


def test_dev_edits_one_reference_by_another_sampler() -> None:
    extras = one(DEV, references=[PICTURE]).settings.extras
    assert (extras["sampler"], extras["noise_scale"], "noise_clip" in extras) == ("flow_match", (8.0, 8.0), False)
    assert one(DEV, references=[PICTURE] * 2).settings.extras["sampler"] == "flash"
    assert one(NEWER, references=[PICTURE]).settings.extras["sampler"] == "flash"
    assert one(DEV, references=[PICTURE], sampler="flash").settings.extras["sampler"] == "flash"


def test_fewer_steps_of_a_distilled_model_are_picked_from_its_own() -> None:
    job = one(DEV, steps=10)
    timesteps = job.settings.extras["timesteps"]
    assert (job.settings.steps, len(timesteps), timesteps[0], timesteps[-1]) == (10, 10, 999, 8)
    assert list(timesteps) == sorted(timesteps, reverse=True)


def test_timesteps_count_the_steps() -> None:
    assert one(timesteps=[900, 500, 100]).settings.steps == 3
    assert one(DEV, shift=3.0).settings.extras.get("timesteps") is None  # a shift spaces the steps itself


def test_a_scale_for_a_distilled_model_is_told_to_have_no_effect() -> None:
    job = one(DEV, guidance=5.0)
    assert job.negative is None and any("distilled" in note for note in job.notes)


BAD = [
    (FULL, {"references": [PICTURE] * 11}, "11 pictures"),
    (FULL, {"references": [PICTURE], "layout": [[0.1, 0.5, 0.2, 1.2]]}, "outside"),
    (FULL, {"references": [PICTURE], "layout": [[0, 1, 0, float("nan")]]}, "outside"),
    (FULL, {"references": [PICTURE], "layout": [[-0.1, 0.5, 0.2, 0.9]]}, "outside"),
    (FULL, {"references": [PICTURE], "layout": [[0.5, 0.1, 0.2, 0.9]]}, "reversed"),
    (FULL, {"references": [PICTURE], "layout": [[0.1, 0.5, 0.2, 0.2]]}, "empty"),
    (FULL, {"references": [PICTURE], "layout": [[0.1, 0.5, 0.2]]}, "four numbers"),
    (FULL, {"references": [PICTURE], "layout": 3}, "list of boxes"),
    (FULL, {"layout": [[0.1, 0.5, 0.2, 0.4]]}, "add references"),
    (FULL, {"references": [np.zeros((4, 4))]}, "array"),
    (FULL, {"sampler": "euler"}, "unipc, flow_match, flash"),
    (FULL, {"shift": 0}, "shift 0"),
    (FULL, {"timesteps": [500, 900]}, "falling"),
    (FULL, {"timesteps": [1000, 500]}, "below 1000"),
    (FULL, {"timesteps": [900, 500], "steps": 3}, "one a step"),
    (FULL, {"noise_scale": "loud"}, "noise_scale"),
    (FULL, {"noise_scale": [8.0, 7.0, 6.0]}, r"noise_scale \[8.0, 7.0, 6.0\]: give one number, or two"),
    (FULL, {"noise_scale": []}, r"noise_scale \[\]: give one number, or two"),
    (DEV, {"noise_clip": -1}, "noise_clip"),
    (FULL, {"step_noise": [np.zeros((1, 3, 32, 32))]}, "flash"),
    (DEV, {"step_noise": [np.zeros((1, 3, 32, 32))]}, "one after each"),
    (FULL, {"blend_seams": 99}, "radius"),
    (FULL, {"blend_seams": "soft"}, "'soft': hidream-o1 .* patches of 32 pixels; give a radius from 1 to 8"),
    (manifests()["flux-dev"], {"sampler": "unipc"}, "one sampler"),
    (manifests()["flux-dev"], {"blend_seams": 1}, "no patch borders"),
]


def test_one_noise_scale_or_two() -> None:
    for given, pair in ((7, (7, 7)), ([7.0], (7, 7)), ((7.5, 8), (7.5, 8))):  # the command line gives lists
        assert one(noise_scale=given).settings.extras["noise_scale"] == pair


def test_a_blend_ends_halfway_to_the_next_border() -> None:
    """Beyond that the bands of two borders would meet, and nothing would be blended."""
    for patch, radius in ((8, 4), (32, 8)):
        assert resolve(FULL, patch, "a fox", 1, blend_seams=radius)[0].blend_seams == radius
        with pytest.raises(RequestError, match=f"give a radius from 1 to {radius} pixels"):
            resolve(FULL, patch, "a fox", 1, blend_seams=radius + 1)


@pytest.mark.parametrize(("manifest", "parameters", "message"), BAD, ids=[message for _, _, message in BAD])
def test_refused(manifest: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        one(manifest, **parameters)
