"""What several test files use: the stored tiny FLUX.1, and the command line as a function."""

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # tiny products: waiting for one another costs threads more

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
import pytest

from tests.draw import drawn_data

DATA = drawn_data()
# A shell's background jobs ignore Ctrl-C and hand that on to every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
mx.set_default_device(mx.cpu)  # references are float32; on a Mac's GPU the work is bfloat16 (precision.py)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def pytest_sessionstart() -> None:
    gc.disable()  # while all that is imported and collected stays


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is there by now stays: modules, and thousands of collected tests. Python's collector would go through them
    again and again, for a tenth of all processor time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a run measures and remembers stays out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def flux_folder() -> Path:
    """A whole FLUX.1 repository, tiny and random; read only."""
    return DATA / "flux" / "schnell"


@pytest.fixture
def flux_copy(flux_folder: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(flux_folder, tmp_path / "model")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    """cli("models", "--names") runs the command line in an empty folder and gives exit code, stdout and stderr."""
    from mlx_imagegen.cli import main

    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it read the variable when it was imported

    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal for want of memory names no other model: to plan all that there are takes seconds. test_limits.py and
    planning/test_fitting.py have refusals that do."""
    monkeypatch.setattr("mlx_imagegen.planning.fitting._largest", lambda most_bytes: "")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on components stack what they load, and layers take a GPU's way, but for what is compiled there."""

    def begin() -> None:
        for module in ("loading.component", "layers.linear", "layers.parts", "layers.rope"):
            monkeypatch.setattr(f"mlx_imagegen.{module}.on_gpu", lambda: True)

    return begin
