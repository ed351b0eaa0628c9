"""Draws torch's normal noise for a few seeds and shapes, for random.py to be compared with.

    python tests/references/noise.py FOLDER

FOLDER gets torch.npz: "<seed> <shape>" -> the first and last 64 values of torch.randn, and for the largest the sum.
Shapes that are and are not multiples of 16, whole pictures' latents, several draws from one stream. Needs torch.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

CASES = [
    (0, (16,)),
    (1, (3, 7, 5)),
    (42, (1, 16, 8, 8)),
    (7, (1, 16, 33, 21)),
    (123456789, (17,)),
    (2**32 - 1, (1, 3, 64, 96)),
    (5, (1, 16, 128, 128)),
]
ENDS = 64


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, shape in CASES:
        generator = torch.Generator("cpu").manual_seed(seed)
        for name in ("first", "second"):  # a stream goes on where the first draw stopped
            values = torch.randn(shape, generator=generator).flatten().numpy()
            ends = values if math.prod(shape) <= 2 * ENDS else np.concatenate([values[:ENDS], values[-ENDS:]])
            arrays[f"{seed} {','.join(map(str, shape))} {name}"] = ends
    np.savez_compressed(folder / "torch.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    draw(parser.parse_args().folder)
