"""What the first import sets for the whole process, before MLX multiplies anything."""

import os
import subprocess
import sys

import pytest

from mlx_imagegen import runtime

# What MLX itself would read: the C library's environment, not Python's copy of it.
IMPORT = """
import ctypes, sys
import mlx_imagegen
assert "mlx.core" not in sys.modules
library = ctypes.CDLL(None)
library.getenv.restype = ctypes.c_char_p
print((library.getenv(b"MLX_ENABLE_TF32") or b"unset").decode(), mlx_imagegen.RUNTIME.tf32, sep="|")
"""


def after_import(value: str | None) -> list[str]:
    env = {name: text for name, text in os.environ.items() if name != runtime.TF32}
    env |= {} if value is None else {runtime.TF32: value}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip().split("|")


def test_tf32_is_off_unless_the_user_set_it() -> None:
    assert after_import(None) == ["0", "off"]
    assert after_import("1") == ["1", "on, by MLX_ENABLE_TF32=1"]


@pytest.mark.parametrize(("value", "expected"), [("0", "off"), ("", "off"), ("no", "off"), (" 01", "on"), ("12", "on")])
def test_the_variable_is_read_as_mlx_reads_it(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.TF32, value)
    assert runtime.prepare().tf32.split(",")[0] == expected


def test_reports_say_it() -> None:
    from mlx_imagegen.machine import machine

    assert machine()["TF32"] == "off"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has its own BLAS")
def test_a_blas_that_a_limit_leaves_no_room_is_not_loaded() -> None:
    """It would end the process, or ask for memory for ever."""
    code = "import mlx_imagegen; print(mlx_imagegen.RUNTIME.blas)"
    command = ["bash", "-c", f'ulimit -v 400000 && exec "{sys.executable}" -c "{code}"']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "OpenBLAS needs more than 410 MB" in done.stdout, done
