"""Arguments of another kind than the interface takes, and system calls that fail in it: the library's own errors."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen import ImagegenError, Pipeline, generate, load, quantize
from mlx_imagegen.errors import FileAccessError, RequestError

QUICK = {"seed": 1, "steps": 1, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("flux-demo")


def test_a_stream_takes_jobs_in_any_collection(pipeline: Pipeline) -> None:
    jobs = pipeline.jobs("a red circle", **QUICK)
    assert list(pipeline.stream([])) == []
    first, second = next(pipeline.stream(job for job in jobs)), next(pipeline.stream(tuple(jobs)))
    assert first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("jobs", [None, 5, "abc", b"x", ["a"], [{"prompt": "a"}], [None]])
def test_a_stream_of_other_things_is_refused(pipeline: Pipeline, jobs: Any) -> None:
    with pytest.raises(RequestError, match=r"stream: .*: give the list that pipeline.jobs"):
        list(pipeline.stream(jobs))


def test_a_job_of_another_model_is_refused(pipeline: Pipeline, flux_folder: Path) -> None:
    """Its sizes, steps and guidance are that model's."""
    with pytest.raises(RequestError, match="a job is for flux-schnell, and this pipeline is flux-demo"):
        next(pipeline.stream(load(flux_folder).jobs("a red circle", **QUICK)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: load("flux-demo", on_load=5),  # type: ignore[arg-type]
        lambda: load("flux-demo", on_download="x"),  # type: ignore[arg-type]
        lambda: load("flux-demo", comfy=5),  # type: ignore[arg-type]
        lambda: quantize("flux-demo", 5),  # type: ignore[arg-type]
        lambda: quantize("flux-demo", "made", on_progress=5),  # type: ignore[arg-type]
        lambda: quantize("flux-demo", "a\0b"),
        lambda: quantize("flux-demo", ""),
        lambda: quantize("flux-demo", "o" * 300),
        lambda: quantize("flux-demo", "o" * 250),
        lambda: generate("a red circle", model="flux-demo", **QUICK).save(5),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_kind_is_refused(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImagegenError) as caught:
        call()
    assert len(str(caught.value)) <= 400 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_a_system_call_that_fails_anywhere_is_an_error_of_ours(
    code: int, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), "somewhere")

    calls: tuple[Callable[[], object], ...] = (
        lambda: pipeline.generate("a red circle", image=tmp_path / "a.png", **QUICK),
        lambda: generate("a red circle", model=tmp_path, **QUICK),
        lambda: quantize(tmp_path, tmp_path / "out"),
        lambda: load(tmp_path),
        lambda: pipeline.set_lora([tmp_path / "a.safetensors"]),
    )
    monkeypatch.setattr(Path, "stat", fail)
    monkeypatch.setattr(Path, "is_file", fail)
    monkeypatch.setattr(Path, "is_dir", fail)
    for call in calls:
        with pytest.raises(ImagegenError):
            call()


def test_a_callback_that_fails_to_connect_keeps_its_error(pipeline: Pipeline) -> None:
    def on_step(_: object) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "no one listens")

    with pytest.raises(ConnectionRefusedError) as caught:
        pipeline.generate("a red circle", on_step=on_step, **QUICK)
    assert not isinstance(caught.value, FileAccessError)
