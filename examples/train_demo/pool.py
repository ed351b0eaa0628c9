"""Fixed pools of pictures and scenes, drawn once and shared by all trainings.

In: a seed. Out: `pool/pictures.npy` (uint8, memory-mapped) and `pool/scenes.json` under the training root, and the
same in `pool_open` for scenes with open parts: the picture shows a filled scene, the file says what a caption says.
Drawing a picture costs less than a training step's share of it, but a VAE's latents for it do not: they are made once,
too.
"""

from __future__ import annotations

import json

import numpy as np
import open_captions
import scenes
from training import ROOT

COUNTS = {"pool": 24_576, "pool_outlined": 6_144, "pool_open": 12_288}


def make(name: str) -> None:
    folder, count = ROOT / name, COUNTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7 + list(COUNTS).index(name))
    if name == "pool_open":
        said = open_captions.sample_mixed(rng, count)
        drawn = [_shown(scene, rng) for scene in said]
    else:
        said = drawn = scenes.sample(rng, count, held_out=False)
    pictures = np.lib.format.open_memmap(
        folder / "pictures.tmp", "w+", np.uint8, (count, scenes.PIXELS, scenes.PIXELS, 3)
    )
    for i in range(0, count, 1024):
        pictures[i : i + 1024] = scenes.draw(drawn[i : i + 1024], rng, outlined=name == "pool_outlined")
    pictures.flush()
    rows = [[[[t.size, t.colour, t.shape] for t in scene.things], scene.where, scene.background] for scene in said]
    (folder / "scenes.json").write_text(json.dumps(rows))
    (folder / "pictures.tmp").rename(folder / "pictures.npy")


def _shown(scene: scenes.Scene, rng: np.random.Generator) -> scenes.Scene:
    """A scene that training may show: filled, and no held-out one."""
    while (shown := open_captions.filled(scene, rng)).held_out:
        pass
    return shown


def load(name: str = "pool") -> tuple[np.ndarray, list[scenes.Scene]]:
    """The pictures (memory-mapped) and what is said of them."""
    folder = ROOT / name
    if not (folder / "pictures.npy").exists():
        make(name)
    rows = json.loads((folder / "scenes.json").read_text())
    drawn = [scenes.Scene(tuple(scenes.Thing(*t) for t in things), where, ground) for things, where, ground in rows]
    return np.load(folder / "pictures.npy", mmap_mode="r"), drawn
