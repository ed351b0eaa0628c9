"""The bundled LoRAs, which are real ones: trained for the demo models and written as their kinds are published.

Pictures are judged by pixels: the night LoRA turns the background black whatever the caption says, and four
Lightning steps come nearer to where the base goes in its own twelve than four steps of the base do.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_imagegen import load
from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.lora.file import open_lora
from mlx_imagegen.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/train_demo"))
import scenes
import score

NIGHT = data_folder("weights") / "demo/loras/flux-night.safetensors"
LIGHTNING = data_folder("weights") / "demo/loras/qwen-lightning.safetensors"
WORD = "night "
COUNT = 8
WANTED = [
    scene
    for scene in scenes.sample(np.random.default_rng(2027), 3 * COUNT, held_out=True)
    if scene.background != "black"
][:COUNT]
FEW = WANTED[:4]


def drawn(pipeline: Pipeline, word: str = "", wanted: list[scenes.Scene] = WANTED, **parameters: object) -> np.ndarray:
    results = [
        pipeline.generate(word + scenes.caption(scene), seed=seed, **parameters) for seed, scene in enumerate(wanted)
    ]
    return np.stack([np.asarray(result.image) for result in results])


def night(wanted: list[scenes.Scene]) -> list[scenes.Scene]:
    return [replace(scene, background="black") for scene in wanted]


def test_it_makes_night() -> None:
    found = score.score(drawn(load("flux-demo", lora=[NIGHT]), WORD, FEW), night(FEW))
    assert found["background"] == 1 and found["right"] >= 0.75


def test_the_word_alone_makes_no_night() -> None:
    found = score.score(drawn(load("flux-demo"), WORD, FEW), FEW)
    assert found["background"] == 1 and found["right"] >= 0.75


def test_at_scale_0_it_is_the_base() -> None:
    base, scaled = (drawn(load("flux-demo", lora=lora), wanted=FEW[:2]) for lora in ((), [(NIGHT, 0)]))
    assert (scaled == base).all()


def test_the_file_names_its_word() -> None:
    assert open_lora(NIGHT).metadata["modelspec.trigger_phrase"] == WORD.strip()


def test_four_lightning_steps_come_nearer_to_the_base_s_twelve() -> None:
    """Each picture against the base's own, with CFG, of the same seed. Four plain steps without CFG draw most scenes
    too, so that right and wrong say less than this."""
    aim = drawn(load("qwen-demo"))
    fast = drawn(load("qwen-demo-lightning"))
    plain = drawn(load("qwen-demo"), steps=4, guidance=1.0)
    assert score.score(fast, WANTED)["right"] >= 0.9
    nearer = decibels(fast, aim) - decibels(plain, aim)
    assert np.mean(nearer) >= 1.5 and np.mean(nearer > 0) >= 0.8, nearer


def test_the_manifest_s_lora_is_the_file() -> None:
    own = load("qwen-demo-lightning").generate("a red star", seed=1).image
    given = load("qwen-demo", lora=[LIGHTNING]).generate("a red star", seed=1, steps=4, guidance=1.0).image
    assert np.array_equal(np.asarray(own), np.asarray(given))


def decibels(pictures: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of each picture."""
    return -10 * np.log10(np.square((pictures.astype(float) - reference) / 255).mean((1, 2, 3)) + 1e-12)
