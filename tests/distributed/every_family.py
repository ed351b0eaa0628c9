"""Every family and demo model by 2 and 4 ranks of MLX's ring on this machine, dense and packed: `make ranks`.

    python -m tests.distributed.every_family [FAMILY ...]

A line for each: the largest difference to one process's picture, in levels of 255, what was summed or exchanged by a
rank, and which components were shared out. It ends with an error if any differs by more than a level.
"""

import sys
import tempfile
from pathlib import Path

from mlx_imagegen.planning.hosts import BRANCHES, LAYERS
from tests.distributed.lockstep import Entry, Row, check, compared, entry
from tests.distributed.wide_models import MODELS, draw_wide

GUIDED = {"flux/dev": {"true_cfg": 3.0}}
DEMOS = ("flux-demo", "qwen-demo", "qwen-demo-lightning", "hidream-demo", "hidream-demo-full")
TWO_BRANCHES = ("qwen-demo", "hidream-demo-full")
PACKED = "q4"
SECONDS = 1800.0  # of one run of all ranks


def main() -> None:
    names = sys.argv[1:] or list(MODELS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {name: draw_wide(name, folder / name) for name in names}
        dense = {name: entry(path) for name, path in models.items()}
        packed = {f"{name} {PACKED}": entry(path, quant=PACKED) for name, path in models.items()}
        uneven = {f"{name} {PACKED} 3:1": entry(path, [3, 1], PACKED) for name, path in models.items()}
        demos = {name: entry(name) for name in DEMOS if not sys.argv[1:]}
        guided = {name: entry(path, **GUIDED.get(name, {"guidance": 3.0})) for name, path in models.items()}
        run(BRANCHES, 2, guided | {name: demos[name] for name in TWO_BRANCHES if demos}, folder)
        run(LAYERS, 2, dense | packed | uneven | demos, folder)
        run(LAYERS, 4, dense | packed | demos, folder)


def run(mode: str, ranks: int, entries: dict[str, Entry], folder: Path) -> None:
    rows = compared(mode, ranks, entries.values(), folder, SECONDS)
    for name, row in zip(entries, rows, strict=True):
        print(f"{mode} {ranks} {name}: {describe(row)}", flush=True)
    for name, row in zip(entries, rows, strict=True):
        if "refused" not in row or name not in DEMOS:  # a demo model has few heads
            check(row)


def describe(row: Row) -> str:
    if "refused" in row:
        return f"refused, for {row['refused']}"
    one, *_ = row["ranks"]
    if "sums" in one:
        counted = f"{one['sums']} sums of {one['summed_bytes']} bytes, shared {', '.join(row['shared'])}"
    else:
        counted = f"{one['sent_bytes']} bytes"
    return f"{row['levels']} levels of a spread of {row['spread']:.0f}, {counted}"


if __name__ == "__main__":
    main()
