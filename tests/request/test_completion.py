"""What a prompt of a demo model leaves open is chosen by the seed, and what it says stays."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.completion import completed

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/train_demo"))
import open_captions
import scenes

FLUX = manifests()["flux-demo"]


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a red circle", "a (small|large) red circle in the center on a WHITE background"),
        ("A large red circle on a white background.", "a large red circle in the center on a white background"),
        ("a white background with a big red circle at the top", "a large red circle at the top on a white background"),
        ("circle on Grey", "a (small|large) COLOUR circle in the center on a gray background"),
        ("two red stars", "a (small|large) red star RELATION a \\1 red star on a WHITE background"),
        ("a small orange star under a blue square", "a small orange star below a .* blue square on a WHITE background"),
    ],
)
def test_what_is_left_open_is_chosen_by_the_seed(prompt: str, caption: str) -> None:
    pattern = caption.replace("WHITE", "(white|gray|pink|black)").replace("COLOUR", f"({'|'.join(scenes.COLOURS)})")
    pattern = pattern.replace("RELATION", "(left of|right of|above|below)")
    made = [completed(FLUX, prompt, seed) for seed in range(12)]
    assert made == [completed(FLUX, prompt, seed) for seed in range(12)]
    for text, notes in made:
        assert re.fullmatch(pattern, text), text
        assert notes == [f'flux-demo draws "{text}": what a prompt leaves open is chosen by the seed']
    assert (len({text for text, _ in made}) > 1) == ("|" in pattern)


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat", "three circles", "circles", "a red blue circle", "a red", "a circle left of a star and a square",
        "a star above", "two circles and a star", "一个红色圆形", "night a red circle", "a white black star",
    ],
)  # fmt: skip
def test_what_is_of_no_caption_stays(prompt: str) -> None:
    assert completed(FLUX, prompt, 1) == (prompt, [])


def test_a_large_model_is_given_what_is_asked() -> None:
    assert completed(manifests()["flux-dev"], "a red circle", 1) == ("a red circle", [])


def test_captions_as_learnt_stay() -> None:
    random = np.random.default_rng(1)
    for scene in scenes.sample(random, 300, held_out=False):
        for text in (scenes.caption(scene), scenes._english(scene, scenes.PLACE_WORDS, scenes.RELATION_WORDS, 1)):
            assert completed(FLUX, text, 1) == (text, [])


def test_what_is_said_stays() -> None:
    """Of all wordings of the training's open captions, none is left as it is, and none is changed in what it says."""
    for scene, prompt in zip(*open_captions.held_out(300, 7), strict=True):
        text, notes = completed(FLUX, prompt, 5)
        full = next((each for each in _fillings(scene) if scenes.caption(each) == text), None)
        assert notes and full, f"{prompt!r} became {text!r}"


def _fillings(scene: scenes.Scene) -> list[scenes.Scene]:
    """What the scene may become; an open place is the middle."""
    one = len(scene.things) == 1
    wheres = [scene.where] if scene.where else ["center"] if one else list(scenes.RELATIONS)
    made: list[tuple[scenes.Thing, ...]] = [()]
    for thing in scene.things:
        sizes, colours = ([said] if said else list(names) for said, names in _open_parts(thing))
        made = [
            (*before, scenes.Thing(size, colour, thing.shape))
            for before in made for size in sizes for colour in colours
        ]  # fmt: skip
    grounds = [scene.background] if scene.background else list(scenes.BACKGROUNDS)
    return [scenes.Scene(things, where, ground) for things in made for where in wheres for ground in grounds]


def _open_parts(thing: scenes.Thing) -> tuple[tuple[str, list[str]], ...]:
    return (thing.size, list(scenes.SIZES)), (thing.colour, list(scenes.COLOURS))


def test_the_record_has_the_prompt_as_given() -> None:
    pipeline = load("flux-demo")
    drawn = pipeline.generate("a red circle", seed=1, steps=1)
    caption, (note,) = completed(FLUX, "a red circle", 1)
    assert drawn.record["prompt"] == "a red circle" and note in drawn.report.notes
    assert np.array_equal(drawn.image, pipeline.generate(caption, seed=1, steps=1).image)
