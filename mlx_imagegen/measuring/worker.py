"""One opened model in a process of its own: pictures asked for line by line, each answered with what it took.

In: a model, how to open it, and jobs. Out: `Rendered` or `Failed` with the reason; nothing that happens in there ends
the caller. A fresh process is what makes peaks of memory comparable: none inherits the buffers of the one before.
`python -m mlx_imagegen.measuring.worker` is the other side. It ends with its standard input, and at the next step when
its caller is gone: a large model's picture takes long, and whoever starts again would have two in memory.
Must not know: tables, quality, sheets.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import mlx.core as mx

from ..errors import DownloadError, UnknownModelError, described
from ..packing.recipes import AS_STORED

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request.job import Job


@dataclass(frozen=True)
class Rendered:
    """A picture that was written."""

    path: str
    report: dict[str, Any]  # Report.as_dict()
    record: dict[str, Any]
    wall_seconds: float  # from opening to the finished picture, by one clock around all of it
    processor_seconds: float  # of the same, over all threads; another program's work is not in it
    weight_bytes: int  # all components, as they are held
    denoiser: str  # how its weights are held: "float32", "4-bit 96, 8-bit 4"

    @property
    def seconds(self) -> dict[str, float]:
        """Stage by stage as the report has them; `unseen` is what the wall clock measured on top of them."""
        stages = {name: value for name, value in self.report["seconds"].items() if name != "total"}
        stages["steps"] = sum(stages["steps"])
        return {**stages, "unseen": self.wall_seconds - sum(stages.values()), "total": self.wall_seconds}


@dataclass(frozen=True)
class Failed:
    """A picture that could not be made."""

    reason: str
    # What would fail in the same way: every picture of the "model", of the model "opened" like this, or this "picture".
    scope: str = "picture"


class Worker:
    """The caller's side: a context, with one process for one opened model."""

    def __init__(self, model: str, quant: str = AS_STORED, precision: str | None = None):
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlx_imagegen.measuring.worker"],  # -P: no modules of the folder it is run in
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path},
            process_group=0,  # a terminal sends Ctrl-C to the caller's group alone, and the caller ends this process
        )  # fmt: skip
        opening = {"model": model, "quant": None if quant == AS_STORED else quant, "precision": precision}
        self._send(opening | {"caller": os.getpid()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.terminate()  # interrupted: its picture is not waited for
        self._process.communicate()

    def render(
        self,
        prompt: str,
        path: Path,
        parameters: dict[str, Any],
        reopen: bool = False,
        choices: dict[str, str] | None = None,
    ) -> Rendered | Failed:
        """`reopen`: open the model again, as for a process's first picture. `choices`: the caller's, for the report."""
        job = {"prompt": prompt, "path": str(path), "parameters": parameters, "reopen": reopen}
        self._send(job | {"choices": choices or {}})
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            return Failed(_ending(self._process.wait()), "opened")
        answer = json.loads(line)
        return Failed(**answer) if "reason" in answer else Rendered(**answer)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # the process is gone; `render` says how it ended
            return


def _ending(code: int) -> str:
    if code == -9:
        return "the system ended its process (signal 9), as when memory runs out; choose a smaller quant or size."
    return f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code}'} before the picture was made."


def main() -> None:
    """Answers go to what was standard output; whatever a library prints goes to standard error."""
    # A caller that was killed is no error of this process.
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin, answers)


def _serve(jobs: IO[str], answers: IO[str]) -> None:
    from ..hub.download import files_of, identify
    from ..pipeline import load
    from ..preflight import manifest_before_opening, refuse_before_download, resolve_before_opening

    first = jobs.readline()
    if not first:  # the caller was interrupted before it said anything
        return
    opening = json.loads(first)
    caller = opening.pop("caller")
    pipeline: Pipeline | None = None
    for line in jobs:
        job = json.loads(line)
        try:
            if job["reopen"]:
                pipeline = None  # gone before the next is loaded, whose peak would else be that of two models
                mx.clear_cache()
            started = _clocks()
            pictures: list[Job] | None = None
            if pipeline is None:
                manifest = manifest_before_opening(opening["model"])
                if manifest:
                    pictures = resolve_before_opening(manifest, opening.get("lora"), job["prompt"], **job["parameters"])
                found = identify(opening["model"])
                refuse_before_download(found, opening["quant"])
                files_of(found)  # a download is no part of loading
                started = _clocks()
                pipeline = load(**opening)
            pictures = pipeline.check(pictures) if pictures else pipeline.jobs(job["prompt"], **job["parameters"])
            answer = asdict(_made(pipeline, job, pictures, started, caller))
        except Exception as error:  # the boundary of the process: whatever it is, the other cells go on
            answer = asdict(Failed(described(error), _scope(error, pipeline is not None)))
        answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
        answers.flush()


def _scope(error: Exception, is_open: bool) -> str:
    if isinstance(error, UnknownModelError | DownloadError):
        return "model"
    return "picture" if is_open else "opened"


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _made(
    pipeline: "Pipeline", job: dict[str, Any], pictures: "list[Job]", started: tuple[float, float], caller: int
) -> Rendered:
    def ended_with_caller(_: object) -> None:
        if os.getppid() != caller:
            raise SystemExit

    (result,) = pipeline.stream(pictures, ended_with_caller)
    wall, processor = (now - then for now, then in zip(_clocks(), started, strict=True))
    result.report.choices |= job["choices"]
    path = result.save(job["path"])
    parts = pipeline.family.components
    return Rendered(
        str(path), result.report.as_dict(), result.record, wall, processor,
        sum(part.nbytes for part in parts.values()), pipeline.family.transformer.held_as,
    )  # fmt: skip


if __name__ == "__main__":
    main()
