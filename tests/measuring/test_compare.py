"""`compare` on tiny FLUX.1 folders: the sheet, what is used again, what a failure leaves, and being killed half-way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen.image import read_metadata
from mlx_imagegen.measuring.compare import Cell, Column, Line, _answers, identified, key, read_columns, read_lines
from mlx_imagegen.measuring.quality import compared
from mlx_imagegen.measuring.worker import Failed, Rendered, Worker
from tests.draw import drawn_data
from tests.tiny import draw_flux

Cli = Callable[..., Ran]
ROOT = Path(__file__).parents[2]
AXES = ["photo", "food culture", "English text", "text with numbers", "person", "art", "composition", "kanji"]
QUICK = ("--size", "64", "--steps", "1", "--seed", "3")


@pytest.fixture
def sheet(cli: Cli, flux_folder: Path) -> Cli:
    """compare, with three prompts, a model that works and one that does not exist."""
    Path("p.txt").write_text("a fox\n\na blue hen\nan owl\n")

    def run(*arguments: object) -> Ran:
        return cli("compare", "--models", flux_folder, "nowhere", "--prompts", "p.txt", *QUICK, "-o", "out", *arguments)

    return run


def pictures(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "cells").glob("*.png"))}


def test_the_sheet_and_its_tables(sheet: Cli) -> None:
    ran = sheet()
    assert ran.code == 0 and ran.out == "out/sheet.png\n", "one column failed, the other did not"
    assert Image.open("out/sheet.png").width > 3 * 256
    data = json.loads(Path("out/compare.json").read_text())
    cells = [cell for cell in data["cells"] if cell["record"]]
    assert [cell["text"] for cell in cells] == ["a fox", "a blue hen", "an owl"]
    missing = [cell for cell in data["cells"] if not cell["record"]]
    assert len(missing) == 3 and all("no model is called 'nowhere'" in cell["reason"] for cell in missing)
    lines = list(csv.DictReader(Path("out/compare.csv").read_text().splitlines()))
    assert len(lines) == 6
    for cell, line in zip(cells, lines, strict=False):
        record = read_metadata(Path("out") / cell["picture"])
        assert (record["prompt"], record["seed"], record["steps"], record["width"]) == (cell["text"], 3, 1, 64)
        taken = record["report"]["seconds"]
        assert float(line["seconds"]) == pytest.approx(taken["encode"] + sum(taken["steps"]) + taken["decode"])
        assert float(line["total_seconds"]) == pytest.approx(taken["total"])
    text = Path("out/compare.md").read_text()
    assert "| schnell | 1 | 64x64 | 1 |" in text and "missing: nowhere" in text and data["where"]["mlx"] in text
    assert "\n\nSeconds: " in text, "or it would be a part of the list"


def test_what_a_picture_s_report_tells_is_told_once(sheet: Cli, flux_folder: Path) -> None:
    """One model reads less of a prompt than another: that is no fair comparison."""
    Path("p.txt").write_text("a fox " * 600)
    for _ in range(2):  # made, and found again
        ran = sheet()
        told = [line for line in ran.err.splitlines() if "cut off" in line]
        assert len(told) == 1 and told[0].startswith("note: schnell: the prompt is longer than")
        assert f"- {told[0]}" in Path("out/compare.md").read_text()


def test_only_missing_cells_are_made_again(sheet: Cli) -> None:
    sheet()
    before = pictures(Path("out"))
    ran = sheet()
    assert pictures(Path("out")) == before and "3 of 3 are there from before" in ran.err
    gone = next(iter(before))
    (Path("out/cells") / gone).unlink()
    ran = sheet()
    after = pictures(Path("out"))
    assert "2 of 3 are there from before" in ran.err and set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {gone}


def test_models_that_edit_are_compared_with_references(cli: Cli) -> None:
    """Known again by their pixels; a picture that is not there is refused before anything runs."""
    folder, picture = drawn_data() / "flux2/klein", Path("a.png")
    Image.new("RGB", (96, 96), "red").save(picture)
    Path("p.txt").write_text("make it blue")
    asked = ("compare", "--models", folder, "--prompts", "p.txt", "--size", "128", "--steps", "1", "--references")
    assert cli(*asked, "b.png").err == "mlx-imagegen: references: b.png is not there.\n"
    ran = cli(*asked, picture)
    (cell,) = json.loads(Path("compare/compare.json").read_text())["cells"]
    assert ran.code == 0 and cell["record"]["references_sha256"], ran.err
    assert "1 of 1 are there from before" in cli(*asked, picture.rename("moved.png")).err
    usual = identified(str(folder), "none", {"references": ["moved.png"]})
    Image.new("RGB", (96, 96), "blue").save("moved.png")
    assert identified(str(folder), "none", {"references": ["moved.png"]}) != usual


def test_a_damaged_cell_is_made_again(sheet: Cli) -> None:
    sheet()
    path = next(Path("out/cells").glob("*.png"))
    path.write_bytes(path.read_bytes()[:100])
    assert "2 of 3" in sheet().err
    assert read_metadata(path)["seed"] == 3


def test_other_settings_are_other_cells(sheet: Cli) -> None:
    sheet()
    sheet("--seed", 4)
    sheet("--steps", 2)
    assert len(pictures(Path("out"))) == 9


def test_another_precision_is_another_cell(sheet: Cli, flux_folder: Path) -> None:
    asked = str(flux_folder), "none", {}
    assert identified(*asked, "float16") != identified(*asked) != identified(*asked, "float32")
    sheet("--precision", "float16")
    data = json.loads(Path("out/compare.json").read_text())
    made = [cell for cell in data["cells"] if cell["record"]]
    assert {(cell["precision"], cell["record"]["precision"]) for cell in made} == {("float16", "float16")}
    assert data["parameters"]["precision"] == "float16" and len(made) == 3


def test_the_key_follows_all_that_makes_a_picture(flux_copy: Path) -> None:
    def made(parameters: dict[str, int], quant: str = "none", text: str = "a fox", folder: Path = flux_copy) -> str:
        return key(identified(str(folder), quant, parameters), Line("1", text))

    usual = made({"seed": 1})
    assert usual == made({"seed": 1})
    others = [
        made({"seed": 2}),
        made({"seed": 1, "steps": 2}),
        made({"seed": 1}, "q6"),
        made({"seed": 1}, text="an owl"),
        made({"seed": 1}, folder=shutil.copytree(flux_copy, flux_copy.parent / "other")),  # copied with its times
    ]
    weights = flux_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(1, 1))
    others.append(made({"seed": 1}))
    assert len({usual, *others}) == 7


def test_killed_half_way_it_goes_on(tmp_path: Path, flux_folder: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(6)))
    out = tmp_path / "out"
    models = [str(flux_folder), str(flux_folder.parent / "dev")]
    command = [sys.executable, "-m", "mlx_imagegen", "compare", "--models", *models, "--prompts", str(prompts)]
    command += ["--size", "128", "--steps", "2", "-o", str(out)]
    said = tmp_path / "stderr"
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said.open("w"))
    while len(pictures(out)) < 2:
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = _settled(out)
    assert 2 <= len(kept) < 12
    assert "Traceback" not in said.read_text(), "the worker ends as quietly as its caller"
    assert not (out / "sheet.png").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = pictures(out)
    assert again.returncode == 0 and len(after) == 12
    assert {name: after[name] for name in kept} == kept, "what was there is untouched"
    assert again.stderr.count(" s\n") == 12 - len(kept), "as many were made as were missing"


def _settled(out: Path) -> dict[str, int]:
    """The picture that the worker was at when its caller died is finished; then the worker ends."""
    kept, since = pictures(out), time.monotonic()
    while time.monotonic() - since < 3:
        time.sleep(0.1)
        if pictures(out) != kept:
            kept, since = pictures(out), time.monotonic()
    return kept


def test_nothing_made_is_a_refusal(cli: Cli) -> None:
    Path("p.txt").write_text("a fox")
    ran = cli("compare", "--models", "nowhere", "--prompts", "p.txt")
    assert ran.code == 2 and "no picture could be made. nowhere: no model is called" in ran.err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.toml", '[[prompt]]\naxis = "photo"', "prompt 1: a prompt has an axis and a text"),
        ("p.toml", '[[prompt]]\naxis = "a"\ntext = " "', "prompt 1: a prompt has an axis and a text"),
        ("p.toml", "[[prompt]", "cannot be read"),
        ("p.toml", "title = 1", "holds no prompts"),
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.TOML", "a fox", "cannot be read"),
        ("p.jsonl", 'a fox\n{"prompt": "an owl", "seed": 3}', "here a line is a prompt alone"),
        ("absent.toml", None, "is not there"),
    ],
)
def test_bad_prompts_are_refused(cli: Cli, name: str, text: str | None, said: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    ran = cli("compare", "--models", "flux-dev", "--prompts", name)
    assert ran.code == 2 and said in ran.err and ran.err.count("\n") == 1
    assert not Path("compare").exists()


def test_a_prompt_that_is_there_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\nan owl\n a fox\n")
    assert read_lines(tmp_path / "p.txt") == [Line("1", "a fox"), Line("2", "an owl")]


def test_a_mark_that_an_editor_put_in_front_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    for name, text in (("p.txt", "a fox"), ("p.toml", '[[prompt]]\naxis = "1"\ntext = "a fox"')):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8-sig")
        assert read_lines(path) == [Line("1", "a fox")]


def test_an_output_that_cannot_be_written_is_refused(sheet: Cli) -> None:
    Path("out").write_text("a file")
    assert "cannot be created" in sheet().err


def test_a_model_that_cannot_be_opened_is_tried_once(
    cli: Cli, flux_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    real = Worker.render
    monkeypatch.setattr(Worker, "render", lambda self, prompt, *rest: tried.append(prompt) or real(self, prompt, *rest))
    (flux_copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    Path("p.txt").write_text("a fox\nan owl\n")
    ran = cli("compare", "--models", flux_copy, "--prompts", "p.txt", *QUICK)
    assert ran.code == 2 and "no picture could be made" in ran.err and tried == ["a fox"]
    assert "model, 1: " in ran.err and "model, 2: " in ran.err, "both cells have a reason"


def test_a_picture_that_fails_leaves_the_rest_of_its_model() -> None:
    answers = iter([Failed("too large"), Rendered("x.png", {}, {"seed": 1}, 1.0, 1.0, 1, "float32")])
    worker = SimpleNamespace(render=lambda *_: next(answers))
    column = Column("m", "none", "m")
    wanted = {0: Cell(column, Line("1", "a fox"), Path("a")), 3: Cell(column, Line("2", "an owl"), Path("b"))}
    (_, missing), (index, made) = _answers(worker, wanted, {})  # type: ignore[arg-type]
    assert missing.reason == "too large" and missing.path is None and index == 3 and made.record


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("flux-dev@q6", ("flux-dev", "q6", "flux-dev q6")),
        ("flux-dev@none", ("flux-dev", "none", "flux-dev")),
        ("/a/b@home/flux", ("/a/b@home/flux", "none", "flux")),
        ("/a/flux@own.toml", ("/a/flux", "own.toml", "flux own")),
        ("flux-dev@q9", ("flux-dev", "q9", "flux-dev q9")),  # whose reason is then the quant
        ("@q6", ("@q6", "none", "@q6")),
        ("./", ("./", "none", "./")),
    ],
)
def test_a_quant_stands_after_the_model(text: str, column: tuple[str, str, str]) -> None:
    assert read_columns([text]) == [Column(*column)]


def test_columns_are_told_apart() -> None:
    """Folders of one name are called by their whole path; what is named twice is one column."""
    columns = read_columns(["/a/flux", "/b/flux", "/b/flux", "flux-dev", "/c/own", "/c/own@q4"])
    assert [column.label for column in columns] == ["/a/flux", "/b/flux", "flux-dev", "own", "own q4"]


def test_the_set_that_ships_has_the_eight_axes() -> None:
    lines = read_lines(ROOT / "examples" / "prompts.toml")
    assert [line.axis for line in lines] == AXES
    assert any(ord(letter) > 0x4E00 for letter in lines[-1].text)


def test_a_quant_that_a_model_lacks_leaves_the_rest(cli: Cli, tmp_path: Path) -> None:
    """A folder that is quantized already cannot be packed once more: its cells say so."""
    wide = draw_flux(tmp_path / "wide")
    assert cli("quantize", "--model", wide, "--quant", "q8", "-o", tmp_path / "small", "--quiet").code == 0
    Path("p.txt").write_text("a fox")
    ran = cli("compare", "--models", f"{tmp_path / 'small'}@q4", wide, "--prompts", "p.txt", *QUICK)
    assert ran.code == 0 and "quantized already" in ran.err
    assert len(pictures(Path("compare"))) == 1


def test_packed_weights_are_held_against_the_model_as_stored(cli: Cli, tmp_path: Path) -> None:
    wide = draw_flux(tmp_path / "wide")
    Path("p.txt").write_text("a fox")
    assert cli("compare", "--models", wide, f"{wide}@q4", "--prompts", "p.txt", *QUICK).code == 0
    data = json.loads(Path("compare/compare.json").read_text())
    stored, packed = (Image.open(Path("compare") / cell["picture"]) for cell in data["cells"])
    quality = compared(packed, stored)
    lines = Path("compare/compare.md").read_text().splitlines()
    assert lines[2].endswith("| – | – |") and lines[3].endswith(f"| {quality.gmsd:.4f} |") and quality.gmsd > 0
