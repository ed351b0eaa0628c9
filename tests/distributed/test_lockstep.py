"""Ranks of MLX's ring that draw a picture together give the one that a process alone draws.

A few models here; every_family.py compares all (`make ranks`), and test_layers.py shares all families' layers out over
threads.
"""

from pathlib import Path

from mlx_imagegen.planning.hosts import BRANCHES, LAYERS
from tests.distributed.lockstep import check, compared, entry
from tests.distributed.wide_models import draw_wide
from tests.draw import drawn_data


def test_branches_of_two_ranks(tmp_path: Path) -> None:
    """The velocities of float32 numbers go over once a step, and nothing else."""
    stored = drawn_data()
    entries = [
        entry(stored / "qwen_image/image", guidance=3.0),
        entry(stored / "hidream_o1", guidance=3.0, width=32, height=24),
    ]
    rows = compared(BRANCHES, 2, entries, tmp_path)
    assert len({row["family"] for row in rows}) == 2
    for row in rows:
        check(row)
        for rank in row["ranks"]:
            assert rank["sent_bytes"] == 2 * row["velocity_bytes"] and rank["waited_seconds"] > 0, row


def test_packed_layers_of_four_ranks_whose_kernels_differ(tmp_path: Path) -> None:
    """Those that unpack by strips evaluate before the others do; sums keep their order all the same."""
    model = draw_wide("qwen_image/image", tmp_path / "model")
    (row,) = compared(LAYERS, 4, [entry(model, quant="q4", mixed_kernels=True, steps=1, width=32, height=32)], tmp_path)
    check(row, 1)
    assert row["shared"] == ["transformer"]  # the language model has 32 channels
    assert len(row["ranks"]) == 4 and row["ranks"][0]["sums"] > 0
