"""HiDream-O1 against upstream's own code: recordings of 128x128 runs, read from next to the checkout where they are.

The recordings (45 MB) are not part of the repository; tests/hidream_o1/test_hidream.py holds the same checks on a
small model that is. What they need least of, the solvers' trajectories and the references' sizes, is stored here.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.families.hidream_o1.tokens import positions
from tests.families.hidream_o1.checks import check_forward, check_loop, opened

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "hidream_o1"
T2I, EDIT = GOLDEN / "t2i", GOLDEN / "edit"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"upstream's recordings are not here ({GOLDEN}); they are not in the repository"
)


def references(count: int) -> list[Image.Image]:
    return [Image.open(EDIT / f"ref{index}.png").convert("RGB") for index in range(count)]


def test_forward() -> None:
    prompt = json.loads((T2I / "prompt.json").read_text())["prompt"]
    check_forward(T2I, mx.load(str(T2I / "forward.safetensors")), prompt, (128, 128))


@pytest.mark.parametrize("count", [1, 2])
def test_forward_with_references(count: int) -> None:
    prompt = json.loads((EDIT / "prompt.json").read_text())["prompt"]
    want = mx.load(str(EDIT / f"forward_{count}ref.safetensors"))
    check_forward(EDIT, want, prompt, (128, 96), references(count))


@pytest.mark.parametrize("name", ["unipc", "unipc_shift1_nocfg", "flash", "flash_noclip", "flow_match"])
def test_loop(name: str) -> None:
    check_loop(T2I, T2I / f"loop_{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "count"), [("1ref_flow_match", 1), ("1ref_unipc_cfg", 1), ("2ref_flash", 2), ("2ref_layout_unipc", 2)]
)
def test_edit_loop(name: str, count: int) -> None:
    check_loop(EDIT, EDIT / f"loop_{name}.safetensors", references(count))


def test_positions_at_real_sizes() -> None:
    config = opened(T2I).files.config
    recorded = mx.load(str(T2I / "positions.safetensors"))
    cases = json.loads((T2I / "positions.json").read_text())
    assert len(cases) == 6
    for name, case in cases.items():
        ids = np.array(recorded[f"{name}.text_ids"]).tolist()
        got = positions(ids, config, tuple(case["tgt"]), case["conds"], [tuple(grid) for grid in case["refs"]])
        assert (got == np.array(recorded[f"{name}.position_ids"])).all(), name
