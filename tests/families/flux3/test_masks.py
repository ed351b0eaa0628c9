"""FLUX.3 with a picture to start from and with masks. diffusers has neither for it, so that what must hold is checked:
what is kept is the given picture to the end, white is image-to-image, the loop begins with the picture and the seed's
noise."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import RequestError
from mlx_imagegen.families.base import Family
from mlx_imagegen.families.flux3.denoiser import Flux3Denoiser
from mlx_imagegen.pipeline import Pipeline
from tests.families.flux3.test_flux3 import DATA
from tests.test_masks import levels

KINDS = ("klein", "base")
SIDE, BOX = 64, [16, 16, 48, 32]  # whole cells of 16 pixels
PICTURE = Image.effect_noise((SIDE, SIDE), 90).convert("RGB")
ASKED: dict[str, Any] = {"seed": 1, "steps": 3, "image": PICTURE, "strength": 0.6}


@pytest.fixture(params=KINDS)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load(DATA / request.param)


def made(pipeline: Pipeline, **more: Any) -> np.ndarray:
    return levels(pipeline.generate("a fox", **ASKED | more).image)


def last_x(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """The loop's end, and the given picture in the loop's layout, [tokens, values] each."""
    family, seen = type(pipeline.family), list[mx.array]()
    decode = family.decode
    monkeypatch.setattr(family, "decode", lambda self, x, settings: seen.append(x) or decode(self, x, settings))
    made(pipeline, **more)
    (job,) = pipeline.jobs("a fox", **ASKED | more)
    picture = job.inputs().image
    assert picture is not None
    clean = pipeline.family.encode_image(picture)
    return np.array(seen[0][0]), np.array(pipeline.family.pack(clean)[0])


def test_what_the_mask_keeps_is_the_picture_to_the_end(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    x, clean = last_x(pipeline, monkeypatch, mask_box=BOX)
    drawn = np.zeros((4, 4), bool)
    drawn[1, 1:3] = True
    assert np.abs(x - clean)[~drawn.ravel()].max() < 1e-5 * np.abs(clean).max()
    assert np.abs(x - clean)[drawn.ravel()].max() > 0.1


def test_outside_the_mask_are_the_picture_s_own_pixels(pipeline: Pipeline) -> None:
    left, top, right, bottom = BOX
    inside = np.zeros((SIDE, SIDE), bool)
    inside[top:bottom, left:right] = True
    ours = made(pipeline, mask_box=BOX)
    assert np.array_equal(ours[~inside], levels(PICTURE)[~inside])
    assert not np.array_equal(ours[inside], levels(PICTURE)[inside])


def test_a_white_mask_is_image_to_image_and_a_black_one_is_refused(pipeline: Pipeline) -> None:
    assert np.array_equal(made(pipeline, mask=np.full((SIDE, SIDE), True)), made(pipeline))
    with pytest.raises(RequestError, match="nothing white"):
        made(pipeline, mask=np.full((SIDE, SIDE), False))


def test_a_picture_starts_with_as_much_noise_as_its_strength_says(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x at the first of the steps that are left: sigma parts of the seed's noise, the rest the picture."""
    family: Family[Any] = pipeline.family
    seen: list[mx.array] = []
    velocity = Flux3Denoiser.velocity
    monkeypatch.setattr(Flux3Denoiser, "velocity", lambda self, x, index: seen.append(x) or velocity(self, x, index))
    made(pipeline)
    (job,) = pipeline.jobs("a fox", **ASKED)
    picture = job.inputs().image
    assert picture is not None
    clean = family.pack(family.encode_image(picture))
    noise = family.pack(family.stream(1).randn(family.shape(job.settings)))  # as text-to-image draws it
    schedule = family.schedule(job.settings).from_strength(job.strength)
    sigma = schedule.sigmas[0]
    assert schedule.steps == len(seen) == 2 and sigma < 1
    assert np.abs(np.array(seen[0] - (sigma * noise + (1 - sigma) * clean))).max() < 1e-6
