"""`bench` on a tiny FLUX.1 that can be packed: its files, its sums, its quality columns, and what failures do."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen.cli import main
from mlx_imagegen.commands.flags import size
from mlx_imagegen.documents import json_text
from mlx_imagegen.errors import OutputError
from mlx_imagegen.escaping import LONGEST_MESSAGE
from mlx_imagegen.hub import download
from mlx_imagegen.image import read_metadata
from mlx_imagegen.measuring import tables
from mlx_imagegen.measuring import worker as cell
from mlx_imagegen.measuring.bench import (
    STAGES,
    Asked,
    Row,
    Spread,
    _fill,
    _quality,
    _rows,
    chart,
    compare_pictures,
    in_markdown,
    in_terminal,
    noted,
    skipped,
)
from mlx_imagegen.measuring.quality import compared
from mlx_imagegen.measuring.worker import Failed, Rendered, Worker
from tests.draw import drawn_data
from tests.tiny import draw_flux

Cli = Callable[..., Ran]
QUICK = {"seed": 1, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("model") / "flux")


@pytest.fixture(scope="module")
def folder(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured once for all tests: two quants that work, and one that no recipe has."""
    out = tmp_path_factory.mktemp("bench") / "new" / "out"
    arguments = ["bench", "--model", wide, "--quant", "q4", "none", "q5", "--size", "64", "--steps", "3"]
    assert main([str(each) for each in [*arguments, "--repeat", "2", "--plot", "-o", out]]) == 0, (
        "one failed, others ran"
    )
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["quant"]: row for row in json.loads((folder / "bench.json").read_text())["rows"]}


def test_every_file_parses_and_says_the_same(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    lines = {line["quant"]: line for line in csv.DictReader((folder / "bench.csv").open())}
    assert set(lines) == set(rows) == {"q4", "none", "q5"}
    text = (folder / "bench.md").read_text()
    for quant in ("q4", "none"):
        row, line = rows[quant], lines[quant]
        assert float(line["total_seconds"]) == row["seconds"]["total"]["median"]
        assert float(line["step_seconds"]) == row["step_seconds"]["median"]
        assert float(line["processor_seconds"]) == row["processor_seconds"]["median"] > 0
        assert f"| {quant} | 64x64 | 3 |" in text and "\n\nMeasured on: " in text
        assert {"mlx", "device", "commit", "memory", "date"} <= set(line)
    assert Image.open(folder / "plot.png").width > 300
    assert (
        "skipped" in text and "no recipe is called 'q5'" in text and "no recipe is called 'q5'" in lines["q5"]["reason"]
    )


def test_step_caches_stand_next_to_the_same_without(wide: Path, tmp_path: Path) -> None:
    """Their picture is held against the uncached one of the same quant, and no chip's speed is taken from them."""
    out, shared = tmp_path / "out", tmp_path / "shared.json"
    arguments = ["bench", "--model", wide, "--quant", "none", "--size", "64", "--steps", "9", "--cache", "2"]
    arguments += ["--repeat", "1", "--warm-up", "0", "--share", shared, "-o", out]
    assert main([str(each) for each in arguments]) == 0
    made = {row["cache"]: row for row in json.loads((out / "bench.json").read_text())["rows"]}
    assert {cache: row["reused_steps"] for cache, row in made.items()} == {None: 0, 2.0: 3}
    assert made[None]["quality"] is None
    assert made[2.0]["reference"] == "none, no cache" and made[2.0]["quality"]["psnr_db"] > 15
    assert made[2.0]["quality"] == asdict(compared(*(Image.open(out / made[key]["picture"]) for key in (2.0, None))))
    text = (out / "bench.md").read_text()
    assert "| none, cache 2.0 | 64x64 | 9 | 33% |" in text
    assert len(json.loads(shared.read_text())["rows"]) == 1


def test_precisions_stand_next_to_each_other(cli: Cli, wide: Path) -> None:
    """The widest is what the others are held against; no chip's speed is taken from them."""
    arguments = ("--quant", "none", "--size", 64, "--steps", 1, "--repeat", 1, "--warm-up", 0, "--share", "shared.json")
    ran = cli("bench", "--model", wide, *arguments, "--precision", "float16", "float32", "int4")
    assert ran.code == 0, ran.err
    made = {row["precision"]: row for row in json.loads(Path("bench/bench.json").read_text())["rows"]}
    assert list(made) == ["float16", "float32", "int4"] and "give one of float32," in made["int4"]["reason"]
    assert made["float16"]["reference"] == "none, float32" and made["float16"]["quality"]["psnr_db"] > 30
    for dtype in ("float16", "float32"):
        record = read_metadata(Path("bench") / made[dtype]["picture"])
        assert record["precision"] == made[dtype]["denoiser"] == dtype
    assert "| none, float16 | 64x64 |" in Path("bench/bench.md").read_text()
    lines = csv.DictReader(Path("bench/bench.csv").read_text().splitlines())
    assert [line["precision"] for line in lines] == list(made)
    assert json.loads(Path("shared.json").read_text())["rows"] == []


def test_stages_sum_to_the_total(rows: dict[str, dict[str, Any]]) -> None:
    for quant in ("q4", "none"):
        for run in rows[quant]["runs"]:
            assert set(run) == set(STAGES)
            assert sum(run[stage] for stage in STAGES if stage != "total") == pytest.approx(run["total"])
            assert run["unseen"] >= 0, "no stage is counted twice"
            assert all(run[stage] > 0 for stage in ("load", "encode", "prepare", "steps", "decode", "other"))
        total = rows[quant]["seconds"]["total"]
        assert total["least"] <= total["median"] <= total["most"] and len(rows[quant]["runs"]) == 2
        assert len(rows[quant]["warm_up_seconds"]) == 1 and rows[quant]["cold_load_seconds"] > 0
    # The best run: on a busy machine any moment may be another program's.
    assert min(run["unseen"] / run["total"] for quant in ("q4", "none") for run in rows[quant]["runs"]) < 0.02


def test_it_agrees_with_the_picture_s_own_report(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """The last run's picture is the one that stays."""
    for quant in ("q4", "none"):
        report = read_metadata(folder / rows[quant]["picture"])["report"]["seconds"]
        last = rows[quant]["runs"][-1]
        assert last["steps"] == pytest.approx(sum(report["steps"])) and len(report["steps"]) == 3
        for stage in ("load", "encode", "prepare", "decode", "other"):
            assert last[stage] == pytest.approx(report[stage])
        assert last["total"] == pytest.approx(report["total"] + last["unseen"])


def test_memory_is_of_one_process_by_stage(rows: dict[str, dict[str, Any]]) -> None:
    for quant in ("q4", "none"):
        assert {"load", "encode", "prepare", "step", "decode"} <= set(rows[quant]["mlx_peak_bytes"])
        peaks = list(rows[quant]["process_peak_bytes"].values())
        assert peaks and min(peaks) > 2**20
    assert rows["q4"]["weight_bytes"] < rows["none"]["weight_bytes"]
    assert rows["q4"]["denoiser"] != rows["none"]["denoiser"]


def test_quality_is_against_the_heaviest(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    assert rows["none"]["quality"] is None and rows["q4"]["reference"] == "none"
    expected = compared(*(Image.open(folder / rows[quant]["picture"]) for quant in ("q4", "none")))
    assert rows["q4"]["quality"]["psnr_db"] == expected.psnr_db
    assert 15 < expected.psnr_db < 80, "the pictures differ, but are of the same noise"


def referenced(folder: Path, *cells: tuple[str, str, str, int, int]) -> list[str | None]:
    """What each is compared with: (model, quant, manifest, side in pixels, bytes of weights)."""
    rows = []
    for number, (model, quant, manifest, side, weight) in enumerate(cells):
        Image.new("RGB", (side, side), "grey").save(folder / f"{number}.png")
        row = Row(model, quant, (side, side), manifest=manifest, weight_bytes=weight, picture=f"{number}.png")
        rows.append(row)
    compare_pictures(rows, folder)
    return [row.reference for row in rows]


def test_only_pictures_of_one_model_and_size_are_compared(tmp_path: Path) -> None:
    cells = [("a", "none", "m", 16, 9), ("a", "q4", "m", 32, 4), ("d", "q4", "n", 16, 8)]
    assert referenced(tmp_path, *cells) == [None, None, None]


def test_a_quant_is_compared_with_its_own_model(tmp_path: Path) -> None:
    """Two fine-tunes are of one manifest and weigh the same: neither is how the other should be."""
    cells = [(model, quant, "m", 16, weight) for model in "ab" for quant, weight in (("none", 9), ("q8", 6), ("q4", 4))]
    assert referenced(tmp_path, *cells) == [None, "none", "none"] * 2


def test_a_quantized_copy_is_compared_with_its_source(tmp_path: Path) -> None:
    assert referenced(tmp_path, ("a", "none", "m", 16, 9), ("copy", "none", "m", 16, 5)) == [None, "a none"]


def test_equal_pictures_are_valid_json() -> None:
    row = Row("a", "q8", (16, 16), quality=compared(Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16))))
    data = json.loads(json_text(asdict(row)), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["quality"]["psnr_db"] is None and _quality(row.quality)[0] == "∞"


def test_nothing_measured_is_a_refusal(cli: Cli, wide: Path) -> None:
    ran = cli("bench", "--model", wide, "--quant", "q5", "--size", 64, "--steps", 1)
    assert ran.code == 2 and "nothing could be measured" in ran.err and "q5" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *[
            (("--size", text), f"'{text}' is not a size such as 1024")
            for text in ("big", "0", "64x", "x64", "64x64x64", "-5", "²")
        ],
        (("--repeat", 0), "repeat 0"),
        (("-o", "a-file/out"), "cannot be created"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(cli: Cli, wide: Path, arguments: tuple[Any, ...], said: str) -> None:
    Path("a-file").write_text("")
    ran = cli("bench", "--model", wide, *arguments)
    assert ran.code == 2 and said in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize(("text", "meant"), [("64", (64, 64)), ("64X32", (64, 32)), ("64×32", (64, 32))])
def test_sizes_in_every_spelling(text: str, meant: tuple[int, int]) -> None:
    assert size(text) == meant


def test_a_model_that_is_nowhere_is_asked_for_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    real = Worker.__init__
    monkeypatch.setattr(Worker, "__init__", lambda self, *how: begun.append(how[1]) or real(self, *how))
    ran = cli("bench", "--model", "someone/something", "--quant", "none", "q4", "--size", 64, 64, "32x32")
    assert ran.code == 2 and begun == ["none"] and ran.err.count("skipped: ") == 1
    assert "nothing could be measured. someone/something none 64x64: someone/something" in ran.err


def test_what_is_asked_for_twice_is_measured_once() -> None:
    twice = ["q4", "q4"], [(8, 8), (8, 8)]
    asked = Asked(["a", "b"], *twice, "a fox", {}, precisions=["float16", "float16"], caches=[0.1, 0.1])
    names = [f"{model} q4, float16{cache} 8x8" for model in "ab" for cache in ("", ", cache 0.1")]
    assert [row.name for row in _rows(asked)] == names


def test_a_reason_is_said_once_with_all_that_it_is_true_of() -> None:
    rows = [Row("a", "q4", (8, 8), "no room"), Row("a", "q6", (8, 8), "no room"), Row("b", "q4", None, "no room")]
    assert skipped([*rows, Row("c", "q4", None)]) == ["a q4 8x8, q6 8x8: no room", "b q4: no room"]


def test_time_that_no_stage_saw_is_told() -> None:
    """Next to the tables: seconds that do not sum to the total within 2% are no good seconds."""
    for unseen, said in ((0.04, ["a q4 64x64: 4% of the total passed between the stages"]), (0.01, [])):
        seconds = {"load": 0.1, "encode": 0.1, "prepare": 0.1, "steps": [0.5], "decode": 0.1, "other": 0.1 - unseen}
        peaks = {"mlx": {"step": 1}, "process_after": {"step": 1}}
        report = {"seconds": seconds, "peak_bytes": peaks, "notes": [], "choices": {}}
        record = {"width": 64, "height": 64, "steps": 1, "manifest": "m"}
        row = Row("a", "q4", None)
        _fill(row, [], [Rendered("a.png", report, record, 1.0, 1.0, 1, "float32")])
        assert [line.partition(", as on")[0] for line in noted([row])] == said
        assert all(f"note: {line}" in in_terminal([row]) for line in noted([row]))
        asked = Asked(["a"], ["q4"], [None], "a fox", {})
        assert all(f"- note: {line}" in in_markdown([row], asked, {}) for line in noted([row]))


def test_a_model_that_edits_is_measured_with_references(cli: Cli) -> None:
    """And the JSON that is printed is the file's."""
    folder = drawn_data() / "flux2/klein"
    Image.new("RGB", (96, 96), "red").save("a.png")
    asked = ("bench", "--model", folder, "--quant", "none", "--size", "128x64", "--steps", 1, "--repeat", 1)
    asked += ("--warm-up", 0, "--json")
    assert "b.png is not there" in cli(*asked, "--references", "a.png", "b.png").err and not Path("bench").exists()
    ran = cli(*asked, "--references", "a.png")
    assert ran.code == 0 and read_metadata(Path("bench/01-klein-none.png"))["references_sha256"], ran.err
    data = json.loads(ran.out)
    assert data == json.loads(Path("bench/bench.json").read_text())
    assert data["rows"][0]["size"] == [128, 64] and data["asked"]["repeat"] == 1


# The process of its own (cell.py)


def test_a_worker_takes_no_modules_from_the_folder_it_is_run_in(cli: Cli, wide: Path, tmp_path: Path) -> None:
    Path("json.py").write_text("raise SystemExit('not ours')")
    with Worker(str(wide)) as worker:
        assert isinstance(worker.render("a fox", tmp_path / "a.png", QUICK), Rendered)


def test_a_worker_stays_warm_unless_told_otherwise(wide: Path, tmp_path: Path) -> None:
    with Worker(str(wide)) as worker:
        first, second, third = (
            worker.render("a fox", tmp_path / "a.png", QUICK, reopen=reopen) for reopen in (False, False, True)
        )
    assert isinstance(first, Rendered) and isinstance(second, Rendered) and isinstance(third, Rendered)
    assert second.seconds["load"] < third.seconds["load"] / 2
    assert second.record == first.record
    loading = [made.report["peak_bytes"]["mlx"]["load"] for made in (first, third)]
    assert loading[1] < loading[0] + first.weight_bytes / 10, "the model is gone before it is opened again"


def test_a_worker_s_peak_is_not_its_caller_s(wide: Path, tmp_path: Path) -> None:
    ours = bytearray(500_000_000)
    ours[::4096] = bytes(len(ours[::4096]))  # touched, page by page
    with Worker(str(wide)) as worker:
        made = worker.render("a fox", tmp_path / "a.png", QUICK)
    assert isinstance(made, Rendered) and made.report["peak_bytes"]["process"] < len(ours)


def test_a_bad_job_does_not_end_the_worker(wide: Path, tmp_path: Path) -> None:
    with Worker(str(wide)) as worker:
        refused = worker.render("a fox", tmp_path / "a.png", QUICK | {"steps": 0})
        nowhere = worker.render("a fox", tmp_path / "absent" / "a.png", QUICK)
        made = worker.render("a fox", tmp_path / "a.png", QUICK)
    assert isinstance(refused, Failed) and "steps 0" in refused.reason and refused.scope == "picture"
    assert isinstance(nowhere, Failed) and "does not exist" in nowhere.reason and nowhere.scope == "picture"
    assert isinstance(made, Rendered)


def test_a_killed_worker_is_a_reason(wide: Path, tmp_path: Path) -> None:
    with Worker(str(wide)) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        for _ in range(2):
            missing = worker.render("a fox", tmp_path / "a.png", QUICK)
            assert isinstance(missing, Failed) and "memory runs out" in missing.reason


BRIEF = ("--quant", "none", "q4", "--size", 64, "--steps", 1, "--repeat", 1, "--warm-up", 0)


def test_what_was_measured_before_ctrl_c_is_kept(cli: Cli, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Worker.__init__

    def begin(self: Worker, model: str, quant: str, precision: str | None) -> None:
        if quant == "q4":
            raise KeyboardInterrupt
        real(self, model, quant, precision)

    monkeypatch.setattr(Worker, "__init__", begin)
    ran = cli("bench", "--model", wide, *BRIEF)
    assert ran.code == 130 and " none " in ran.out and "q4" not in ran.out
    assert [row["quant"] for row in json.loads(Path("bench/bench.json").read_text())["rows"]] == ["none"]


def test_what_was_measured_before_it_was_killed_is_kept(wide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_imagegen", "bench", "--model", str(wide), *map(str, BRIEF), "--repeat", "5"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    written = tmp_path / "bench" / "bench.json"
    while not written.exists():
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert [(row["quant"], len(row["runs"])) for row in json.loads(written.read_text())["rows"]] == [("none", 5)]


def test_what_was_measured_is_shown_even_if_the_disk_is_full_by_then(
    cli: Cli, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more is measured."""

    def full(*_: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(tables, "write_text", full)
    ran = cli("bench", "--model", wide, *BRIEF)
    assert ran.code == 2 and "no room" in ran.err and " none " in ran.out and " q4 " not in ran.out


def test_what_was_measured_is_written_even_if_the_reader_is_gone(wide: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mlx_imagegen",
        "bench",
        "--model",
        str(wide),
        *map(str, (*BRIEF, "--quant", "q4")),
    ]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout
    running.stdout.close()
    assert running.wait(timeout=60) == 141
    assert len(json.loads((tmp_path / "bench" / "bench.json").read_text())["rows"]) == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux to see a process's children")
def test_a_worker_does_not_outlive_a_killed_caller(wide: Path, tmp_path: Path) -> None:
    """It does not finish a picture of a thousand steps first."""
    command = [sys.executable, "-m", "mlx_imagegen", "bench", "--model", str(wide), "--quant", "none", "--size", "256"]
    running = subprocess.Popen([*command, "--steps", "1000"], cwd=tmp_path)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (worker := children.read_text().split()) or (_processor_seconds(worker[0]) or 0) < 3:
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    running.kill()
    running.wait()
    while (seconds := _processor_seconds(worker[0])) is not None:
        assert seconds < 6, "the worker is still at its picture"
        time.sleep(0.05)


def _processor_seconds(process: str) -> float | None:
    """None: it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux to see a process's children")
@pytest.mark.parametrize("pictures", [0, 1])
def test_ctrl_c_is_one_line_and_leaves_no_process(pictures: int, wide: Path, tmp_path: Path) -> None:
    """As a terminal sends it, to the whole group; while the worker still imports, and while it works."""
    command = [sys.executable, "-m", "mlx_imagegen", "bench", "--model", str(wide), "--quant", "none", "q4"]
    command += ["--size", "64", "--steps", "1", "--repeat", "500"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (worker := children.read_text().split()) or len(list(tmp_path.glob("bench/*.png"))) < pictures:
        assert running.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    error = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and error.count("\n") == 1 and "interrupted" in error, error
    for _ in range(100):  # it ends with its caller, or just behind it
        if not Path(f"/proc/{worker[0]}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def served(opening: dict[str, Any], *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """The worker's side, in this process."""
    answers, opening = io.StringIO(), {"caller": os.getppid()} | opening
    cell._serve(io.StringIO("\n".join(map(json.dumps, [opening, *jobs])) + "\n"), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_caller_that_is_gone_at_once_is_no_error() -> None:
    cell._serve(io.StringIO(), io.StringIO())


def job(path: Path) -> dict[str, Any]:
    return {"prompt": "a fox", "path": str(path), "parameters": QUICK, "reopen": False, "choices": {}}


@pytest.mark.usefixtures("no_other_model")
def test_a_model_that_does_not_fit_is_a_reason(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 1000)
    (answer,) = served({"model": str(wide), "quant": None}, job(tmp_path / "a.png"))
    assert answer["scope"] == "picture", "a smaller one may fit"
    assert "this machine has 0.0 GB" in answer["reason"] and not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("no_other_model")
@pytest.mark.parametrize(
    ("parameters", "memory", "said"),
    [({}, 1000, "this machine has 0.0 GB"), ({"steps": 0}, 10**13, "steps 0")],
)
def test_nothing_is_downloaded_for_what_cannot_be_made(
    parameters: dict[str, int], memory: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: memory)
    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("a download began"))
    asked = job(Path("a.png")) | {"parameters": {"seed": 1} | parameters}
    (answer,) = served({"model": "flux-dev", "quant": None}, asked)
    assert said in answer["reason"] and answer["scope"] == "opened", "another quant may fit"


def test_even_a_defect_is_a_reason(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise KeyError("weights \x1b[31m" + "x" * 5000)

    monkeypatch.setattr(cell, "_made", broken)
    answers = served({"model": str(wide), "quant": None}, job(tmp_path / "a.png"), job(tmp_path / "b.png"))
    first, second = (answer["reason"] for answer in answers)
    assert first == second and first.startswith("KeyError: 'weights ")
    assert len(first) == LONGEST_MESSAGE and first.isprintable(), "as of this library's own errors"


@pytest.mark.parametrize(
    ("model", "quant", "scope"), [("nowhere", None, "model"), (None, "q5", "opened"), (None, None, None)]
)
def test_what_else_would_fail_is_known(
    wide: Path, tmp_path: Path, model: str | None, quant: str | None, scope: str | None
) -> None:
    (answer,) = served({"model": model or str(wide), "quant": quant}, job(tmp_path / "a.png"))
    assert answer.get("scope") == scope


# Tables


def test_numbers_are_short() -> None:
    assert [tables.short(value) for value in (0.1234, 1.234, 12.34, 1234.5, 0.5, None)] == [
        "0.123", "1.23", "12.3", "1234", "0.500", "–",
    ]  # fmt: skip
    assert Spread(2.0, 1.0, 3.0).shown() == "2.00 (1.00–3.00)" and Spread(2.0, 2.0, 2.0).shown() == "2.00"


def test_sizes_of_small_models_are_told_apart() -> None:
    sizes = (2_840_000, 90_000_000, 250_000_000, 17_240_000_000)
    assert [tables.gigabytes(size) for size in sizes] == ["0.00284", "0.09", "0.250", "17.2"]


def test_tables_line_up() -> None:
    text = tables.aligned(("model", "seconds"), [("flux", "1.5"), ("qwen-image", "12.5"), ("x", "–")])
    assert text.splitlines() == [
        "model       seconds",
        "flux            1.5",
        "qwen-image     12.5",
        "x                 –",
    ]
    assert tables.markdown(("a", "b"), [("1|2", "3")]).splitlines()[-1] == "| 1\\|2 | 3 |"


def test_a_chart_names_models_only_where_there_are_several() -> None:
    once = [Row("a", "q4", (16, 16), step_seconds=Spread(1, 1, 1), mlx_peak_bytes={"step": 5})]
    where: dict[str, str | None] = {"device": "d", "platform": "p", "mlx": "1"}
    assert chart(once, where).size == chart([*once, Row("b", "q4", None, reason="no")], where).size


def test_the_worker_ends_with_its_caller(wide: Path) -> None:
    worker = Worker(str(wide))
    assert worker._process.stdin
    worker._process.stdin.close()
    assert worker._process.wait(timeout=60) == 0
    worker._process.stdout.close()  # type: ignore[union-attr]
