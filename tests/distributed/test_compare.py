"""`compare` on two ranks: the cells of one process, a killed rank's and a declined column's by the other."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.commands.compare_on_ranks import differences, identity
from mlx_imagegen.measuring.compare import Column, prepared, read_columns, read_lines
from mlx_imagegen.pipeline import load
from tests.distributed.ranks import finish, start
from tests.distributed.test_generate import DEV, SCHNELL, command, last_lines

QUICK = ("--size", "64", "--steps", "2")


def compared(*models: object) -> list[str]:
    return command("compare", "--models", *models, "--prompts", "p.txt", *QUICK, "-o", "out")


def cells(folder: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads((folder / "compare.json").read_text())["cells"] if cell["record"]]


def test_cells_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that only one rank has is drawn by that one, and the table says where each was measured."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        shutil.copytree(DEV, folder / "dev")
    (folders[0] / "p.txt").write_text("a fox\nan owl\n")
    (folders[1] / "dev/model_index.json").write_text("{}")
    first, second = finish(start(2, compared(SCHNELL, "dev"), tmp_path, folders))
    assert first[0] == 0 and first[1] == "out/sheet.png\n" and second[:2] == (0, ""), first[2] + second[2]
    assert "it has another model_index.json than rank 0" in first[2]

    monkeypatch.chdir(folders[0])
    columns, lines, asked = read_columns([SCHNELL, "dev"]), read_lines(Path("p.txt")), {"seed": 1, "steps": 2}
    asked |= {"width": 64, "height": 64}
    for column in columns:
        found = prepared(column, lines, asked, Path("out/cells"), lambda line: None)
        assert not any(cell.is_wanted for cell in found), "a single process finds it again"
    shared = cells(Path("out"))
    assert len(shared) == 4
    for cell in shared:
        alone = load(cell["model"]).generate(cell["text"], **asked).image
        np.testing.assert_array_equal(np.asarray(Image.open(Path("out") / cell["picture"])), np.asarray(alone))
    assert {cell["drawn_on"].split(",")[0] for cell in shared if cell["model"] == "dev"} == {"rank 0 of 2"}
    assert {cell["drawn_on"].split(",")[0] for cell in shared} == {"rank 0 of 2", "rank 1 of 2"}
    assert "| drawn on |" in Path("out/compare.md").read_text()


def test_a_killed_rank_s_cell_is_drawn_by_the_other(tmp_path: Path) -> None:
    """It is killed while it opens its first model, in a process of its own."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    processes = start(2, compared(DEV), tmp_path, [tmp_path, tmp_path])
    deadline = time.monotonic() + 30
    while not subprocess.run(["pgrep", "-P", str(processes[1].pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "it opens no model"
        time.sleep(0.02)
    processes[1].kill()
    first, second = finish(processes)
    assert second[0] == -9 and first[0] == 0, first[2]
    assert re.search(r"rank 1 \([\w-]+\) has gone; others draw what it has not finished \(1\)", first[2]), first[2]
    assert first[1] == "out/sheet.png\n" and len(cells(tmp_path / "out")) == 2


def test_nothing_made_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\n")
    first, _ = outputs = finish(start(2, compared("nowhere"), tmp_path, [tmp_path, tmp_path]))
    assert first[:2] == (2, "") and "no picture could be made. nowhere: no model" in last_lines(outputs)[0]
    assert not (tmp_path / "out").exists()


def test_ranks_that_differ_leave_the_column(tmp_path: Path) -> None:
    first = [identity(Column(SCHNELL, quant, "")) for quant in ("none", "q8")]
    assert differences(first, first) == {}
    recipe = tmp_path / "q8.toml"
    recipe.write_text((Path(__file__).parents[2] / "quant/q8.toml").read_text().replace("8", "6"))
    found = differences(first, [identity(Column(DEV, "none", "")), identity(Column(SCHNELL, str(recipe), ""))])
    assert found["0"].startswith("it has the model flux-dev, and rank 0 the model flux-schnell"), found
    assert found["1"].startswith("it has another recipe"), found
