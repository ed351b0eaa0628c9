"""One sheet of the bundled demo models' pictures: a row a caption, a column a model.

`python benchmarks/demo_sheet.py [--out benchmarks/pictures/demo.png]`. The same seed for all; each picture at its
model's defaults.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from mlx_imagegen import load
from mlx_imagegen.measuring.sheet import Tile, contact_sheet

HERE = Path(__file__).parent
SEED, SIDE_PIXELS = 1, 128
CAPTIONS = (
    "a small red circle left of a large blue square on a white background",
    "a large yellow star above a small purple triangle on a pink background",
    "a large green triangle in the center on a gray background",
    "a small orange star below a large blue circle on a black background",
)
COLUMNS = {
    "flux-demo, 8 steps": "flux-demo",
    "qwen-demo, 12 steps, CFG": "qwen-demo",
    "qwen-demo-lightning, 4 steps, LoRA": "qwen-demo-lightning",
    "hidream-demo, 8 steps": "hidream-demo",
    "hidream-demo-full, 20 steps, CFG": "hidream-demo-full",
}  # label -> model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "pictures" / "demo.png")
    args = parser.parse_args()
    tiles: dict[tuple[int, int], Tile] = {}
    for index, column in enumerate(COLUMNS.values()):
        pipeline = load(column)
        for row, caption in enumerate(CAPTIONS):
            tiles[row, index] = Tile("", pipeline.generate(caption, seed=SEED).image)
    sheet = contact_sheet(list(COLUMNS), [("", caption) for caption in CAPTIONS], tiles, SIDE_PIXELS)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
