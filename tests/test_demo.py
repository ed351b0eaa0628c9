"""The bundled demo models draw what their captions say: trained weights through the ordinary path, judged by pixels.

Held-out captions (never trained on) are drawn at the manifest's defaults and scored by examples/train_demo/score.py.
The same score falls when something is wrong that no shape check sees: a wrong schedule, a swapped order of modulation
or of axes, a lost guidance embedding, prompts that do not match.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_imagegen
from benchmarks import masks
from mlx_imagegen import load
from mlx_imagegen.families.flux1 import modulation as flux_modulation
from mlx_imagegen.families.flux1 import transformer as flux_transformer
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.hidream_o1 import tokens as hidream_tokens
from mlx_imagegen.families.qwen_image import transformer as qwen_transformer
from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.sampling import Schedule

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/train_demo"))
import open_captions
import scenes
import score

FAMILIES = {"flux1": "flux-demo", "qwen_image": "qwen-demo", "hidream_o1": "hidream-demo"}
MODELS = [*FAMILIES.values(), "qwen-demo-lightning"]
DEMO = data_folder("weights") / "demo"
FAMILY_BYTES, ALL_BYTES = 8 * 10**6, 20 * 10**6
COUNT = 8  # benchmarks/demo.py scores the full 200


def held_out(count: int = COUNT) -> list[scenes.Scene]:
    return scenes.sample(np.random.default_rng(2026), count, held_out=True)


def drawn(model: str, wanted: list[scenes.Scene], language: str = "en", **parameters: Any) -> np.ndarray:
    pipeline = load(model)
    captions = [scenes.caption(scene, language) for scene in wanted]
    results = [pipeline.generate(caption, seed=seed, **parameters) for seed, caption in enumerate(captions)]
    return np.stack([np.asarray(result.image) for result in results])


def share_right(model: str, count: int = 4) -> float:
    wanted = held_out(count)
    return score.score(drawn(model, wanted), wanted)["right"]


@pytest.fixture(scope="module", params=MODELS)
def pictures(request: pytest.FixtureRequest) -> np.ndarray:
    return drawn(request.param, held_out())


def test_held_out_captions_are_drawn(pictures: np.ndarray) -> None:
    shares = score.score(pictures, held_out())
    assert shares["background"] >= 0.97 and shares["colour"] >= 0.93 and shares["position"] >= 0.93, shares
    assert shares["right"] >= 0.8, shares


def test_the_score_tells_right_from_shuffled(pictures: np.ndarray) -> None:
    wanted = held_out()
    assert score.score(pictures, wanted[1:] + wanted[:1])["right"] <= 0.1


def test_the_score_counts_things() -> None:
    rng = np.random.default_rng(0)
    red, twins = scenes.Thing("", "red", "circle"), scenes.Thing("small", "red", "circle")
    one, two = scenes.Scene((red,), "", ""), scenes.Scene((red, red), "", "")
    drawn_one = scenes.draw([open_captions.filled(one, rng)], rng)[0]
    drawn_two = scenes.draw([scenes.Scene((twins, twins), "left of", "pink")], rng)[0]
    assert score.judge(drawn_one, one).right and score.judge(drawn_two, two).right
    assert not score.judge(drawn_two, one).right and not score.judge(drawn_one, two).right


def test_the_score_finds_filled_scenes_right() -> None:
    rng = np.random.default_rng(1)
    wanted = open_captions.sample_mixed(rng, 20)
    pictures = scenes.draw([open_captions.filled(scene, rng) for scene in wanted], rng)
    assert score.score(pictures, wanted)["right"] == 1
    assert score.score(pictures, wanted[1:] + wanted[:1])["right"] <= 0.1


@pytest.mark.parametrize("model", ["qwen-demo", "qwen-demo-lightning"])
def test_chinese_captions_are_drawn(model: str) -> None:
    wanted = held_out(4)
    assert score.score(drawn(model, wanted, "zh"), wanted)["right"] >= 0.8


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_schedule_is_seen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timesteps counted from 0 to 1 where the model counts to 1000, as one division too many makes them."""
    family = type(load(model).family)
    schedule = family.schedule

    def divided(self: object, settings: object) -> Schedule:
        made = schedule(self, settings)  # type: ignore[arg-type]
        return Schedule(made.sigmas, tuple(t / 1000 for t in made.timesteps))

    monkeypatch.setattr(family, "schedule", divided)
    assert share_right(model) <= 0.5


@pytest.mark.parametrize(("model", "module"), [("flux-demo", flux_transformer), ("qwen-demo", qwen_transformer)])
def test_a_swapped_modulation_order_is_seen(model: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modulate = module.modulate
    monkeypatch.setattr(module, "modulate", lambda x, shift, scale, eps: modulate(x, scale, shift, eps))
    assert share_right(model, 2) == 0


def test_swapped_axes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiDream-O1 has no modulation; what has an order there is a patch's place."""
    positions = hidream_tokens._grid_positions
    monkeypatch.setattr(hidream_tokens, "_grid_positions", lambda grid, start: positions(grid, start)[[0, 2, 1]])
    assert share_right("hidream-demo", 2) == 0


def guidance_gain(count: int = 2) -> float:
    """How much closer, in dB, pictures with a guidance of 4 are to those made with two branches and that scale than
    pictures with a guidance of 1. The model was trained for this."""
    wanted = held_out(count)
    aim = drawn("flux-demo", wanted, guidance=1.0, true_cfg=4.0, negative_prompt="")
    told, plain = (drawn("flux-demo", wanted, guidance=guidance) for guidance in (4.0, 1.0))
    return float(np.mean(decibels(told, aim) - decibels(plain, aim)))


def decibels(pictures: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of each picture."""
    return -10 * np.log10(np.square((pictures.astype(float) - reference) / 255).mean((1, 2, 3)) + 1e-12)


def test_the_guidance_embedding_is_used() -> None:
    """Scenes come out right without it, too, so that the score says nothing here."""
    assert guidance_gain() >= 1


def test_a_lost_guidance_embedding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    conditioning = flux_modulation._conditioning

    def without(config: FluxConfig, *inputs: Any) -> mx.array:
        return conditioning(replace(config, guidance_embeds=False), *inputs)

    monkeypatch.setattr(flux_modulation, "_conditioning", without)
    assert guidance_gain() < 0.5


@pytest.mark.parametrize("model", MODELS)
def test_a_caption_outside_the_world_still_gives_a_picture(model: str) -> None:
    result = mlx_imagegen.generate("an astronaut riding a horse, oil on canvas", model=model, steps=2, seed=1)
    assert result.image.size == (128, 128) and any("demo draws" in note for note in result.report.notes)


def test_the_models_stay_small() -> None:
    """A checkout and the wheel carry them."""
    for family in FAMILIES:
        loras = (DEMO / "loras").glob(f"{family.partition('_')[0]}*.safetensors")
        assert size([*(DEMO / family).rglob("*"), *loras]) <= FAMILY_BYTES, family
    assert size(list(DEMO.rglob("*"))) <= ALL_BYTES


def size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


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


@pytest.mark.parametrize("model", ["flux-demo", "qwen-demo", "hidream-demo", "hidream-demo-full"])
def test_a_mask_changes_one_of_two_objects(model: str) -> None:
    """And leaves the other's pixels; benchmarks/masks.py scores 40 of each model."""
    wanted = masks.pairs(3)
    shares, changed = masks.run(model, wanted)
    assert shares["right"] >= 2 / 3 and changed == 0, shares
    before = [scene for scene, _ in wanted]
    kept = np.concatenate([scenes.draw([scene], np.random.default_rng(seed)) for seed, scene in enumerate(before)])
    assert score.score(kept, [after for _, after in wanted])["right"] == 0, "the given pictures are not right yet"
