"""A fixed pool of pictures and scenes, drawn once and shared by all trainings.

In: a seed. Out: `pool/pictures.npy` (uint8, memory-mapped) and `pool/scenes.json` under the training root. Drawing a
picture costs less than a training step's share of it, but a VAE's latents for it do not: they are made once, too.
"""

from __future__ import annotations

import json

import numpy as np
import scenes
from training import ROOT

COUNT = 24_576


def make(outlined: bool = False, count: int = COUNT) -> None:
    folder = ROOT / ("pool_outlined" if outlined else "pool")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7 + outlined)
    drawn = scenes.sample(rng, count, held_out=False)
    pictures = np.lib.format.open_memmap(
        folder / "pictures.tmp", "w+", np.uint8, (count, scenes.PIXELS, scenes.PIXELS, 3)
    )
    for i in range(0, count, 1024):
        pictures[i : i + 1024] = scenes.draw(drawn[i : i + 1024], rng, outlined)
    pictures.flush()
    rows = [[[[t.size, t.colour, t.shape] for t in scene.things], scene.where, scene.background] for scene in drawn]
    (folder / "scenes.json").write_text(json.dumps(rows))
    (folder / "pictures.tmp").rename(folder / "pictures.npy")


def load(outlined: bool = False) -> tuple[np.ndarray, list[scenes.Scene]]:
    """The pictures (memory-mapped) and their scenes."""
    folder = ROOT / ("pool_outlined" if outlined else "pool")
    if not (folder / "pictures.npy").exists():
        make(outlined, COUNT if not outlined else COUNT // 4)
    rows = json.loads((folder / "scenes.json").read_text())
    drawn = [scenes.Scene(tuple(scenes.Thing(*t) for t in things), where, ground) for things, where, ground in rows]
    return np.load(folder / "pictures.npy", mmap_mode="r"), drawn
