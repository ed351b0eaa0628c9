"""Masks on the demo models: one of two objects is replaced, and the other keeps its pixels.

    python benchmarks/masks.py [--count 40]

In: held-out scenes with two objects, drawn without a model. The half with the second object is masked, and the caption
names another object there. Out: for each demo model the share of correct pictures (examples/train_demo/score.py judges
the whole picture), and how many pixels outside the mask changed: none should.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples/train_demo")]

import numpy as np
import scenes
import score

from mlx_imagegen import load

MODELS = ("flux-demo", "qwen-demo", "hidream-demo", "hidream-demo-full")
HALF = scenes.PIXELS // 2
# Where the second object is.
HALVES = {
    "left of": (HALF, 0, 2 * HALF, 2 * HALF),
    "right of": (0, 0, HALF, 2 * HALF),
    "above": (0, HALF, 2 * HALF, 2 * HALF),
    "below": (0, 0, 2 * HALF, HALF),
}


def pairs(count: int) -> list[tuple[scenes.Scene, scenes.Scene]]:
    """Scenes with two objects, and held-out ones in which the second object is another."""
    dice = np.random.default_rng(2027)
    out: list[tuple[scenes.Scene, scenes.Scene]] = []
    while len(out) < count:
        (scene,) = scenes.sample(dice, 1, held_out=False, singles=0)
        first, second = scene.things
        (other,) = scenes.sample(dice, 1, held_out=False, singles=1)
        changed = replace(scene, things=(first, other.things[0]))
        if changed.held_out and other.things[0].colour not in (first.colour, second.colour):
            out.append((scene, changed))
    return out


def masked(pipeline: Any, before: scenes.Scene, after: scenes.Scene, seed: int) -> tuple[np.ndarray, int]:
    """The picture, and how many of its pixels outside the mask are not the given picture's."""
    (picture,) = scenes.draw([before], np.random.default_rng(seed))
    box = HALVES[before.where]
    result = pipeline.generate(scenes.caption(after), seed=seed, image=picture, mask_box=box, strength=1.0)
    made, outside = np.asarray(result.image), np.ones(picture.shape[:2], bool)
    outside[box[1] : box[3], box[0] : box[2]] = False
    return made, int((made != picture).any(-1)[outside].sum())


def run(model: str, wanted: list[tuple[scenes.Scene, scenes.Scene]]) -> tuple[dict[str, float], int]:
    pipeline = load(model)
    made = [masked(pipeline, before, after, seed) for seed, (before, after) in enumerate(wanted)]
    shares = score.score(np.stack([picture for picture, _ in made]), [after for _, after in wanted])
    return shares, sum(changed for _, changed in made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=MODELS)
    asked = parser.parse_args()
    for model in asked.models:
        shares, changed = run(model, pairs(asked.count))
        print(f"{model}: {asked.count} pictures, {shares}, {changed} pixels changed outside the mask", flush=True)


if __name__ == "__main__":
    main()
