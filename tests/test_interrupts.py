"""Ctrl-C at any moment of the program's life."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINE = "mlx-imagegen: interrupted; every file that was written is whole.\n"
# Interrupts its own process when it executes a file, or ends. Where the exception has passed through a text that is
# executed, as dataclasses do, Python ends itself by the signal, caught or not.
CUSTOMIZE = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
def hook(event, arguments):
    if event == "exec" and getattr(arguments[0], "co_filename", "").endswith({file!r}):
        exec("os.kill(os.getpid(), signal.SIGINT)")
sys.addaudithook(hook)
if {file!r} == "exit":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""


def interrupted(folder: Path, file: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(CUSTOMIZE.format(file=file))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "file",
    ["mlx_imagegen/runtime.py", "mlx_imagegen/__main__.py", "argparse.py", "commands/models.py", "hub/manifest.py"],
)
def test_ctrl_c_while_modules_are_imported_is_one_line(file: str, tmp_path: Path) -> None:
    ran = interrupted(tmp_path, file, "mlx_imagegen", "models")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", LINE)


def test_ctrl_c_after_the_work_changes_nothing(tmp_path: Path) -> None:
    ran = interrupted(tmp_path, "exit", "mlx_imagegen", "--version")
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout


def test_ctrl_c_in_the_module_quantize_is_one_line_too(tmp_path: Path) -> None:
    ran = interrupted(tmp_path, "commands/quantize.py", "mlx_imagegen.quantize", "--help")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", LINE)


def test_a_program_that_imports_the_library_keeps_its_ctrl_c() -> None:
    code = "import mlx_imagegen, mlx_imagegen.cli as cli, signal; cli.main(['version']); print(signal.getsignal(2))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "<built-in function default_int_handler>", ran
