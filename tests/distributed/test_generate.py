"""`mlx-imagegen` on several ranks of this machine: the pictures of one process, whatever happens to a rank."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.image import read_metadata
from tests.distributed.ranks import ENVIRONMENT, finish, free_ports, start
from tests.draw import drawn_data

SCHNELL, DEV = str(drawn_data() / "flux/schnell"), str(drawn_data() / "flux/dev")
ONE_HEAD = str(drawn_data() / "qwen_image_21/model")  # one head alone
SMALL = ("--steps", "2", "--size", "64")
SOON = 10.0  # seconds in which all ranks end after one has been killed
DEAD = "mlx-imagegen: rank {} (host) has ended without a word"


def command(*arguments: object) -> list[str]:
    return ["-m", "mlx_imagegen", *map(str, arguments)]


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def report(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = read_metadata(path)["report"]
    return read


def last_lines(outputs: Sequence[tuple[int, str, str]]) -> list[str]:
    """Each rank's last line on standard error, with the host's name left out."""
    return [re.sub(r"\([\w-]+\)", "(host)", error.strip().split("\n")[-1]) for _, _, error in outputs]


def wait_for(path: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(path.glob(pattern))) < count:
        assert time.monotonic() < deadline, "nothing was drawn"
        time.sleep(0.02)


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    """Four pictures, one of which changes a picture that only rank 0's folder holds."""
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 30).convert("RGB").save(tmp_path / "given.png")
    jobs: list[dict[str, Any]] = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(["fox", "hen", "owl"])]
    jobs.append({"prompt": "a given picture", "seed": 9, "image": "given.png", "strength": 0.5})
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, jobs)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_pictures_are_those_of_one_process(
    request_file: Path, out: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path, tmp_path / "elsewhere"]
    for folder in (folders[1], tmp_path / "alone"):
        folder.mkdir()
    arguments = ("--prompt-file", request_file, "--model", SCHNELL, *SMALL)
    first, second = finish(start(2, command(*arguments, "-o", "out/"), tmp_path, folders))
    assert first[0] == 0 and second == (0, "", ""), first[2] + second[2]
    assert "4 pictures on 2 ranks: pictures" in first[2]

    monkeypatch.chdir(tmp_path)
    assert cli(*arguments, "-o", "alone/").code == 0
    alone, shared = pixels(tmp_path / "alone"), pixels(out)
    assert list(alone) == list(shared) and len(alone) == 4
    for name in alone:
        np.testing.assert_array_equal(alone[name], shared[name])
    assert sorted(first[1].split()) == sorted(f"out/{name}" for name in shared)
    ranks = {report(out / name)["choices"]["parallel"] for name in shared}
    assert ranks == {f"pictures, drawn by rank {rank} of 2" for rank in (0, 1)}


def test_pictures_stay_on_their_hosts(out: Path, tmp_path: Path) -> None:
    hosts = [tmp_path / "first", tmp_path / "second"]
    for host in hosts:
        host.mkdir()
    arguments = ("an owl", "--seed", "1-6", "--model", SCHNELL, *SMALL, "--output-on-each-host", "--json")
    first, second = finish(start(2, command(*arguments, "-o", "{seed}.png"), tmp_path, hosts))
    assert first[0] == 0 and second[0] == 0, first[2] + second[2]
    lines = [json.loads(line) for line in first[1].splitlines()]
    assert sorted(line["path"] for line in lines) == [f"{seed}.png" for seed in range(1, 7)] and second[1] == ""
    for rank, host in enumerate(hosts):
        drawn = {line["path"] for line in lines if line["report"]["choices"]["parallel"].endswith(f"rank {rank} of 2")}
        assert drawn and {path.name for path in host.iterdir()} == drawn


def test_a_killed_rank_s_pictures_are_drawn_by_the_other(out: Path, tmp_path: Path) -> None:
    arguments = ("an owl", "--seed", "1-16", "--model", SCHNELL, *SMALL, "-o", out / "{seed}.png")
    processes = start(2, command(*arguments), tmp_path)
    wait_for(out, "*.png", 1)
    processes[1].kill()
    first, second = finish(processes)
    assert second[0] == -9 and first[0] == 0, first[2]
    assert re.search(r"rank 1 \([\w-]+\) has gone; others draw what it has not finished \([123]\)", first[2]), first[2]
    drawn = pixels(out)
    assert len(drawn) == 16 and len({picture.tobytes() for picture in drawn.values()}) == 16


def test_the_first_rank_killed_ends_the_batch_on_all(out: Path, tmp_path: Path) -> None:
    arguments = ("an owl", "--seed", "1-200", "--model", SCHNELL, *SMALL, "-o", out / "{seed}.png")
    processes = start(3, command(*arguments), tmp_path)
    wait_for(out, "*.png", 3)
    started = time.monotonic()
    processes[0].kill()
    outputs = finish(processes)
    assert time.monotonic() - started < SOON
    assert [code for code, _, _ in outputs] == [-9, 2, 2]
    for line in last_lines(outputs)[1:]:
        assert line.startswith(DEAD.format(0)), line


@pytest.mark.parametrize(("mode", "counted"), [("branches", "sent_bytes"), ("layers", "summed_bytes")])
def test_a_picture_drawn_together(mode: str, counted: str, out: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """It is recorded and counted, and one process takes up the record."""
    arguments = ("an owl", "--seed", "3", "--model", DEV, *SMALL, "--true-cfg", "3", "--record-paths")
    first, second = finish(start(2, command(*arguments, "--parallel", mode, "-o", out / "shared.png"), tmp_path))
    assert first[0] == 0 and second == (0, "", ""), first[2] + second[2]
    assert f"1 picture on 2 ranks: {mode}" in first[2]
    record = read_metadata(out / "shared.png")
    assert record["parallel"] == mode and record["report"]["choices"]["parallel"] == f"{mode}, over 2 ranks"
    ranks = record["report"]["ranks"]
    assert [len(rank["step_seconds"]) for rank in ranks] == [2, 2]
    assert len({rank[counted] for rank in ranks}) == 1 and ranks[0][counted] > 0
    assert all(0 < rank["waited_seconds"] < sum(rank["step_seconds"]) for rank in ranks)
    assert {rank["waited_steps"] for rank in ranks} == {1 if mode == "layers" else 2}
    assert cli("--from", out / "shared.png", "-o", out / "alone.png").code == 0
    alone, shared = (np.asarray(Image.open(out / f"{name}.png")).astype(int) for name in ("alone", "shared"))
    assert abs(alone - shared).max() <= 1 and shared.std() > 0


@pytest.mark.parametrize(("mode", "dead"), [("branches", 1), ("layers", 0)])
def test_a_rank_killed_in_the_middle_of_a_picture_ends_both(mode: str, dead: int, out: Path, tmp_path: Path) -> None:
    arguments = ("an owl", "--model", DEV, "--steps", "1000", "--size", "64", "--true-cfg", "3", "--preview-every", "2")
    processes = start(2, command(*arguments, "--parallel", mode, "-o", out / "{seed}.png"), tmp_path)
    wait_for(out, "*step004.png", 1)
    started = time.monotonic()
    processes[dead].kill()
    outputs = finish(processes)
    assert time.monotonic() - started < SOON
    code, _, error = outputs[1 - dead]
    assert code == 2 and outputs[dead][0] == -9
    assert last_lines(outputs)[1 - dead].startswith(DEAD.format(dead)) and "Traceback" not in error, error


def test_ranks_with_other_weights_are_refused_on_both(out: Path, tmp_path: Path) -> None:
    hosts = [tmp_path / "first", tmp_path / "second"]
    for host in hosts:
        shutil.copytree(SCHNELL, host / "model")
    weights = next((hosts[1] / "model" / "transformer").glob("*.safetensors"))
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    outputs = finish(start(2, command("an owl", "--model", "model", *SMALL, "-o", out / "1.png"), tmp_path, hosts))
    assert [code for code, _, _ in outputs] == [2, 2]
    reason = f"rank 1 (host) has another transformer/{weights.name} than rank 0; give all hosts the same files"
    for line in last_lines(outputs):
        assert line.startswith(f"mlx-imagegen: {reason}"), line


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--model", SCHNELL, "--parallel", "branches"], "without guidance between two branches there is one alone"),
        (["--model", ONE_HEAD, "--parallel", "layers"], "over 2 ranks: 'transformer_blocks.0.attn.to_q' has 1 heads"),
        (["--model", str(drawn_data() / "nowhere")], "nowhere"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_both(given: list[str], reason: str, out: Path, tmp_path: Path) -> None:
    outputs = finish(start(2, command("an owl", *given, *SMALL, "-o", out / "1.png"), tmp_path))
    for (code, printed, _), line in zip(outputs, last_lines(outputs), strict=True):
        assert code == 2 and printed == "" and line.startswith("mlx-imagegen: ") and reason in line, line
    assert not list(out.iterdir())


def test_a_command_that_is_not_shared_out_is_refused(tmp_path: Path) -> None:
    outputs = finish(start(2, command("bench"), tmp_path))
    assert set(last_lines(outputs)) == {
        "mlx-imagegen: bench is not shared out over ranks; run it on one host, without mlx.launch."
    }


def test_flags_for_ranks_need_the_launcher(cli: Callable[..., Any]) -> None:
    ran = cli("an owl", "--parallel", "pictures")
    assert ran.code == 2 and "start them with mlx.launch" in ran.err


def test_nothing_of_it_is_imported_by_a_process_alone(out: Path, tmp_path: Path) -> None:
    arguments = ["an owl", "--model", SCHNELL, *SMALL, "-o", str(out / "1.png")]
    program = (
        f"import sys; from mlx_imagegen.cli import main; code = main({arguments!r}); "
        "print(code, [name for name in sys.modules if name.startswith('mlx_imagegen.distributed')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=alone_environment()
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_mlx_s_own_launcher_starts_it(out: Path, tmp_path: Path) -> None:
    """It ends all other ranks when one dies; they go on nevertheless."""
    launcher = Path(sys.executable).parent / "mlx.launch"
    arguments = ("an owl", "--seed", "1-12", "--model", SCHNELL, *SMALL, "-o", out / "{seed}.png")
    process = subprocess.Popen(
        [str(launcher), "-n", "2", "--backend", "ring", "-p", str(free_ports(1)[0]), sys.executable,
         *command(*arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone_environment(),
    )  # fmt: skip
    try:
        second = child_of_rank(1, process.pid)
        wait_for(out, "*.png", 1)
        os.kill(second, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "has gone; others draw what it has not finished" in error, error
    assert len(list(out.iterdir())) == 12


def child_of_rank(rank: int, launcher: int) -> int:
    """Once it runs. Read from its environment: the launcher starts all ranks at once, and their process numbers come in
    any order."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in output_of("pgrep", "-P", launcher).split():
            if f" MLX_RANK={rank} " in output_of("ps", "eww", "-o", "command=", child):
                return int(child)
    raise AssertionError(f"rank {rank} was not started")


def output_of(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True).stdout


def alone_environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}
