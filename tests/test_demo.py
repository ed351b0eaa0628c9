"""The bundled demo models draw what their captions say: trained weights through the ordinary path, judged by pixels.

Held-out captions (never trained on) are drawn at the manifest's defaults and scored by examples/train_demo/score.py.
The same score falls when something is wrong that no shape check sees: a wrong schedule, prompts that do not match.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import mlx_imagegen
from mlx_imagegen import load
from mlx_imagegen.flux import transformer
from mlx_imagegen.sampling import Schedule

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/train_demo"))
import scenes
import score

MODELS = ["flux-demo", "hidream-demo"]
COUNT = 40  # benchmarks/demo.py scores the full 200


def held_out(count: int = COUNT) -> list[scenes.Scene]:
    return scenes.sample(np.random.default_rng(2026), count, held_out=True)


def drawn(model: str, wanted: list[scenes.Scene], **parameters: object) -> np.ndarray:
    pipeline = load(model)
    results = [pipeline.generate(scenes.caption(scene), seed=seed, **parameters) for seed, scene in enumerate(wanted)]
    return np.stack([np.asarray(result.image) for result in results])


@pytest.fixture(scope="module", params=MODELS)
def pictures(request: pytest.FixtureRequest) -> np.ndarray:
    return drawn(request.param, held_out())


def test_held_out_captions_are_drawn(pictures: np.ndarray) -> None:
    shares = score.score(pictures, held_out())
    assert shares["background"] >= 0.95 and shares["colour"] >= 0.9 and shares["position"] >= 0.9, shares
    assert shares["right"] >= 0.75, shares


def test_the_score_tells_right_from_shuffled(pictures: np.ndarray) -> None:
    wanted = held_out()
    assert score.score(pictures, wanted[1:] + wanted[:1])["right"] <= 0.1


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_schedule_is_seen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is told that it is the first: shapes and colours go wrong."""
    wanted = held_out(8)
    right = score.score(drawn(model, wanted), wanted)["right"]
    family = type(load(model).family)
    schedule = family.schedule

    def squashed(self: object, settings: object) -> Schedule:
        made = schedule(self, settings)  # type: ignore[arg-type]
        told = made.timesteps[:1] * made.steps
        return Schedule(made.sigmas, told)

    monkeypatch.setattr(family, "schedule", squashed)
    assert score.score(drawn(model, wanted), wanted)["right"] <= right - 0.25


def test_a_swapped_modulation_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = held_out(8)
    modulate = transformer.modulate
    monkeypatch.setattr(transformer, "modulate", lambda x, shift, scale, eps: modulate(x, scale, shift, eps))
    assert score.score(drawn("flux-demo", wanted), wanted)["right"] <= 0.2


def test_a_caption_outside_the_world_still_gives_a_picture() -> None:
    result = mlx_imagegen.generate("an astronaut riding a horse, oil on canvas", seed=1)
    assert result.image.size == (128, 128) and any("demo draws" in note for note in result.report.notes)


@pytest.mark.parametrize("model", ["hidream-demo", "hidream-demo-full"])
def test_seams_can_be_blended(model: str) -> None:
    """Every model of this family is made of patches, the small ones' of 16 pixels."""
    asked = {"steps": 2, "seed": 1}
    plain, blended = (
        np.asarray(load(model).generate("two red circles on white", **asked, **more).image).astype(int)
        for more in ({}, {"blend_seams": 1})
    )
    changed = (plain != blended).any(-1)
    border = (np.arange(plain.shape[0]) + 1) % 16 < 2
    assert changed.any() and not changed[~border][:, ~border].any()
