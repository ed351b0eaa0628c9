"""Standard streams that are closed or full, and a limit on memory: each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DRAW = "generate 'a red circle' --model flux-demo --size 32 --steps 1 --seed 1 -o ü.png"
FULL = Path("/dev/full")


def run(words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """`words`: a shell's, after the program's name."""
    command = f"{sys.executable} -m mlx_imagegen {words}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)


def is_drawn(folder: Path) -> bool:
    with Image.open(folder / "ü.png") as picture:
        return picture.size == (32, 32)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_stops_no_picture(closed: str, tmp_path: Path) -> None:
    ran = run(f"{DRAW} {closed}", tmp_path)
    assert ran.returncode == 0, ran
    assert is_drawn(tmp_path)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_error_stops_no_picture(tmp_path: Path) -> None:
    ran = run(f"{DRAW} 2> {FULL}", tmp_path)
    assert ran.returncode == 0 and ran.stdout == "ü.png\n", ran
    assert is_drawn(tmp_path)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [f"{DRAW} --quiet", "models", "help"])
def test_a_full_disk_behind_standard_output_is_said_in_one_line(words: str, tmp_path: Path) -> None:
    ran = run(f"{words} > {FULL}", tmp_path)
    assert ran.returncode == 2, ran
    said = "mlx-imagegen: standard output cannot be written (No space left on device); free some room.\n"
    assert ran.stderr == said


def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    ran = run("models | head -1; exit ${PIPESTATUS[0]}", tmp_path)
    assert ran.returncode in (0, 141) and "mlx-imagegen: " not in ran.stderr and "Traceback" not in ran.stderr, ran


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps to no such limit")
def test_a_limit_on_memory_is_refused_before_it_is_reached(tmp_path: Path) -> None:
    """A library's thread that gets no memory ends the process."""
    draw = DRAW.replace("--size 32", "--size 2048")
    command = f"ulimit -v 1500000; exec {sys.executable} -m mlx_imagegen {draw}"
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and not list(tmp_path.iterdir()), ran
    assert "this process may take" in ran.stderr.splitlines()[-1] and "Traceback" not in ran.stderr, ran
