"""Words outside a small model's world are named, with an example of what it draws."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.request.known_words import known_words, unknown_words, unknown_words_note

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/train_demo"))
import open_captions
import scenes

FLUX, QWEN = manifests()["flux-demo"], manifests()["qwen-demo"]
NIGHT = data_folder("weights") / "demo/loras/flux-night.safetensors"


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a cat", ["cat"]),
        ("A red circle, on a Grey background.", []),
        ("a Cat and a cat next to 3 dogs", ["cat", "3", "dogs"]),
        ("白色背景上，一个红色圆形", ["白色背景上", "一个红色圆形"]),
        ("", []),
    ],
)
def test_unknown_words_are_found_once_and_in_order(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt, known_words(FLUX.words)) == unknown


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("白色背景上，一个小的红色圆形在中间", []),
        ("一个红色的猫", ["的猫"]),
        ("一个猫和一个圆形", ["猫"]),
        ("red 猫", ["猫"]),
    ],
)
def test_chinese_is_read_without_spaces(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt, known_words(QWEN.words)) == unknown


def test_the_longest_word_is_taken() -> None:
    assert unknown_words("红色圆", frozenset(["红", "红色", "圆"])) == []


def test_the_note_stays_short() -> None:
    (note,) = unknown_words_note(FLUX, " ".join(f"word{i}" for i in range(100)) + " " + "x" * 5000)
    assert note.startswith("flux-demo does not know: word0, word1, word2, word3, word4 and 96 more; ")
    assert unknown_words_note(FLUX, "x" * 5000)[0].count("x") < 60


def test_a_model_without_a_list_knows_any_word() -> None:
    assert unknown_words_note(manifests()["flux-dev"], "a cat") == []


@pytest.mark.parametrize("name", ["flux-demo", "qwen-demo", "qwen-demo-lightning", "hidream-demo", "hidream-demo-full"])
def test_the_lists_are_the_words_that_training_used(name: str) -> None:
    manifest, rng = manifests()[name], np.random.default_rng(3)
    drawn = scenes.sample(rng, 400, held_out=False)
    texts = [scenes.varied_caption(scene, rng) for scene in drawn]
    texts += [open_captions.worded(scene, rng) for scene in open_captions.sample_mixed(rng, 2000)]
    texts += [scenes.caption(scene, "zh") for scene in drawn if name.startswith("qwen")]
    texts += ["两个红色圆形", "一个红色圆形和一个蓝色圆形"] if name.startswith("qwen") else []
    known = known_words(manifest.words)
    assert not {word for text in texts for word in unknown_words(text, known)}
    assert not [word for word in known if not any(word in text.lower() for text in texts)]
    assert unknown_words(manifest.example or "a cat", known) == []


def test_the_report_names_them() -> None:
    notes = load("flux-demo").generate("a red cat", steps=1, seed=1).report.notes
    assert any("does not know: cat" in note and "a red circle and a blue square" in note for note in notes)
    assert any("choose a real model" in note for note in notes)
    known = load("flux-demo").generate("a red circle at the top on a white background", steps=1, seed=1).report.notes
    assert not any("does not know" in note or "choose a real model" in note for note in known)


def test_a_lora_brings_its_own_words() -> None:
    notes = load("flux-demo", lora=[NIGHT]).generate("night a red circle", steps=1, seed=1).report.notes
    assert not any("does not know" in note for note in notes)
