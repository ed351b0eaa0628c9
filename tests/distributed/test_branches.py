"""One branch of guidance on each of two ranks gives the picture that one rank draws, for every family that has two."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.distributed.ranks import finish, start
from tests.draw import drawn_data

PROGRAM = str(Path(__file__).parent / "branches_program.py")
SMALL: dict[str, Any] = {"seed": 1, "steps": 2, "width": 64, "height": 64}
STORED = {
    "flux/dev": SMALL | {"true_cfg": 3.0},
    "flux2/klein": SMALL | {"guidance": 3.0},
    "flux3/base": SMALL | {"guidance": 3.0},
    "qwen_image/image": SMALL | {"guidance": 3.0},
    "qwen_image_21/model": SMALL | {"guidance": 3.0},
    "z_image/base": SMALL | {"guidance": 3.0},
    "hidream_o1": SMALL | {"guidance": 3.0, "width": 32, "height": 24},
}
DEMOS: dict[str, Any] = {name: {"seed": 1, "steps": 2} for name in ("qwen-demo", "hidream-demo-full")}


def compared(models: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    arguments = [f"{name}={json.dumps(parameters)}" for name, parameters in models.items()]
    first, second = finish(start(2, [PROGRAM, str(drawn_data()), *arguments], folder))
    assert first[0] == 0 and second[0] == 0, first[2] + second[2]
    return [json.loads(line) for line in first[1].splitlines()]


def check(lines: list[dict[str, Any]], count: int) -> None:
    """The velocities of float32 numbers go over once a step, and nothing else."""
    assert len(lines) == count
    for line in lines:
        assert line["levels"] <= 1 and not line["flat"], line
        assert line["steps"] == [2, 2] and line["bytes_a_step"] == [1.0, 1.0] and line["waited"], line


def test_stored_models(tmp_path: Path) -> None:
    lines = compared(STORED, tmp_path)
    check(lines, len(STORED))
    assert len({line["family"] for line in lines}) == len(STORED)


def test_demo_models(tmp_path: Path) -> None:
    check(compared(DEMOS, tmp_path), len(DEMOS))
