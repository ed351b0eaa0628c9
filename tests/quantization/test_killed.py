"""kill -9 at every kind of moment: the target is not there or whole, and the next run makes the same bytes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_imagegen import load
from mlx_imagegen.quantization import partial
from mlx_imagegen.quantization.quantizer import quantize
from tests.quantization.test_convert import digest
from tests.tiny import draw_flux

ROOT = Path(__file__).parents[2]

# What a process does when it reaches the moment: it is gone, without any clean-up.
DIES = "lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "before the folder is made": "Path.mkdir = {dies}",
    "before the first header": "convert._open_shard = {dies}",
    "in the middle of a header": "convert._open_shard = half_header",
    "between two rows": "os.pwrite = after(200, os.pwrite)",
    "between the rows and the journal": "partial.Journal.finish = {dies}",
    "in the middle of the journal's line": "partial.Journal.finish = torn",
    "before the small files": "convert._write_small_files = {dies}",
    "among the small files": "convert.shutil.copyfile = after(3, convert.shutil.copyfile)",
    "before the record": "partial.Partial.seal = {dies}",
    "in the middle of the record": "partial.write_json = half_record",
    "after the record": "partial.Partial.rename = {dies}",
    "between the journal's end and the renaming": "Path.rename = {dies}",
}
CODE = """
import os, signal
from pathlib import Path
from mlx_imagegen.quantization import convert, partial
from mlx_imagegen.quantization.quantizer import quantize
dies = {dies}
def after(count, real):
    left = [count]
    def called(*arguments, **options):
        left[0] -= 1
        return real(*arguments, **options) if left[0] >= 0 else dies()
    return called
def half_header(path, shard):
    path.write_bytes(shard.header[:100])
    dies()
def torn(self, key):
    self._file.write(key.encode()[:20])
    dies()
def half_record(path, data):
    path.with_name(path.name + ".new").write_text("{{")
    dies()
{moment}
quantize("{source}", "{target}", quant="{quant}")
"""


# Under Linux each process is forked from one that has imported all, which takes most of a short run.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PROCESSES.set_forkserver_preload(["mlx_imagegen.quantization.quantizer"])


def die(source: Path, target: Path, moment: str, quant: str = "q4") -> None:
    """In a process of its own, killed where the line `moment` makes it so."""
    code = CODE.format(dies=DIES, moment=moment.format(dies="dies"), source=source, target=target, quant=quant)
    process = PROCESSES.Process(target=exec, args=(code, {}))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("killed") / "source")


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, str]:
    return digest(quantize(source, source.with_name("whole"), quant="q4"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again(source: Path, whole: dict[str, str], tmp_path: Path, moment: str) -> None:
    target = tmp_path / "made"
    die(source, target, MOMENTS[moment])
    assert not target.exists()
    assert digest(quantize(source, target, quant="q4")) == whole
    assert not (tmp_path / "made.partial").exists() and not (target / partial.JOURNAL).exists()
    load(target)


def test_killed_again_and_again(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """One folder, killed at one moment after the other, and at last by another recipe."""
    target = tmp_path / "made"
    for name, moment in MOMENTS.items():
        if name == "after the record":  # from here on only the renaming is left
            break
        die(source, target, moment)
        assert not target.exists()
    quantize(source, tmp_path / "other", quant="q8")
    assert digest(quantize(source, target, quant="q4")) == whole


def test_a_sealed_folder_that_was_not_renamed_is_not_taken_for_another_recipe_s(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    die(source, target, MOMENTS["between the journal's end and the renaming"])
    made = quantize(source, target, quant="q8")
    assert digest(made) == digest(quantize(source, tmp_path / "whole", quant="q8"))


def test_killed_from_outside_at_any_time(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """By the clock: whatever the process was doing, nothing half-made is ever seen under the target's name."""
    target = tmp_path / "made"
    command = [sys.executable, "-m", "mlx_imagegen.quantize", "--quiet", "--bits", "4", "--model", source, "-o", target]
    for tenths in (2, 5, 8, 11):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(tenths / 10)
            os.kill(child.pid, signal.SIGKILL)
        assert not target.exists() or digest(target) == whole
    assert digest(quantize(source, target, quant="q4")) == whole


@pytest.mark.parametrize("moment", ["between two rows", "after the record"])
def test_killed_while_another_one_s_leavings_are_cleared(
    source: Path, whole: dict[str, str], tmp_path: Path, moment: str
) -> None:
    """The first one, run once more, must not find its own journal or record next to files that are gone."""
    target = tmp_path / "made"
    die(source, target, MOMENTS[moment])
    clears = """
def clear(folder):
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    dies()
partial._clear = clear"""
    die(source, target, clears, "q8")
    assert digest(quantize(source, target, quant="q4")) == whole
