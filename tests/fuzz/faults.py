"""Kills and failing system calls while commands write, and what has to hold after each.

A command's output is absent, or complete and right; the command says what was wrong in one line; a second run succeeds.
Children are forked from a process that has the library imported and has computed nothing, so that a thousand of them
take minutes. `python -m tests.fuzz.faults kills|calls COUNT SEED [COMMAND]`.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

HERE = Path(__file__).parent
SHIM = "fail_nth.so"
CODES = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS, errno.EACCES, 0)  # 0: a write that is short
LASTING = (errno.ENOSPC, errno.EFBIG, errno.EROFS)
RUN_SECONDS = 120
LINE_LENGTH = 400


@dataclass(frozen=True)
class Command:
    arguments: Callable[[Path], list[str]]  # of the folder that it writes into
    outputs: Callable[[Path], dict[str, str]]  # name -> what it holds, of outputs that are there
    kills: int = 5  # before a run that is let finish
    grows: bool = False  # output by output, each complete and right; the others appear all at once


def pictures(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*.png")):
        if not path.name.startswith("."):
            with Image.open(path) as image:
                found[str(path.relative_to(folder))] = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    return found


def measured(folder: Path) -> dict[str, str]:
    """Pictures by their pixels, the sheet of them by its size; tables, which have seconds in them, if they can be
    read."""
    found = {
        name: "a sheet" if name.endswith("sheet.png") else digest
        for name, digest in pictures(folder).items()
        if not name.endswith(PLOT)
    }
    for path in sorted(folder.rglob("*.json")):
        if not path.name.startswith("."):
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise OSError(f"{path.name}: {error}") from error
            found[str(path.relative_to(folder))] = "a table"
    return found


def copy(folder: Path) -> dict[str, str]:
    """A quantized folder, its note aside, which names its source."""
    files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in ("mlx_imagegen.json", "README.md")
    }


PLOT = "plot.png"
PROMPTS = '[[prompt]]\naxis = "one"\ntext = "a red circle"\n'


def prompts(folder: Path) -> Path:
    path = folder.parent / "prompts.toml"
    path.write_text(PROMPTS)
    return path


COMMANDS = {
    "quantize": Command(
        lambda at: ["quantize", "--model", "flux-demo", "--quant", "q4", "--workers", "2", "-o", str(at / "out")], copy
    ),
    "generate": Command(
        lambda at: ["generate", "a red circle", "--model", "flux-demo", "--seed", "1", "--steps", "1", "--overwrite",
                    "-o", str(at / "a.png")], pictures, 3,
    ),
    "compare": Command(
        lambda at: ["compare", "--models", "flux-demo", "flux-demo@q4", "--prompts", str(prompts(at)), "--steps", "1",
                    "--size", "64", "-o", str(at / "out")], measured, 3, grows=True,
    ),
    "bench": Command(
        lambda at: ["bench", "--model", "flux-demo", "--quant", "none", "q4", "--steps", "1", "--size", "64",
                    "--repeat", "1", "--warm-up", "0", "-o", str(at / "out")], measured, 3, grows=True,
    ),
}  # fmt: skip


def main(arguments: list[str], report: Path) -> int:
    """In the child: the command, with what it says in a file."""
    from mlx_imagegen.cli import main as run

    with report.open("w") as said:
        os.dup2(said.fileno(), 2)
        os.dup2(said.fileno(), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        try:
            return run(arguments)
        except BaseException as error:
            import traceback

            traceback.print_exc()
            print(f"TRACEBACK {type(error).__name__}", file=sys.stderr)
            return 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def forked(arguments: list[str], report: Path, before: Callable[[], object] = lambda: None) -> int:
    child = os.fork()
    if child == 0:
        code = 98
        try:
            os.setpgid(0, 0)
            before()
            code = main(arguments, report)
        finally:
            os._exit(code)
    with contextlib.suppress(OSError):  # a group from now on, before the child has said so itself
        os.setpgid(child, child)
    return child


def ended(child: int, seconds: float) -> int | None:
    """The exit code; None if it did not end in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def reference(command: Command, folder: Path) -> tuple[dict[str, str], float]:
    """What a run without faults makes, and how long it takes."""
    folder.mkdir()
    report = folder.with_suffix(".txt")
    started = time.monotonic()
    code = ended(forked(command.arguments(folder), report), RUN_SECONDS)
    assert code == 0, report.read_text()
    return command.outputs(folder), time.monotonic() - started


def finished(command: Command, folder: Path, right: dict[str, str], report: Path) -> str | None:
    """Runs to the end and says what is wrong then."""
    code = ended(forked(command.arguments(folder), report), RUN_SECONDS)
    if code != 0:
        return f"the second run ended with {code}: {report.read_text()[-300:]}"
    return None if command.outputs(folder) == right else "the second run's output differs"


def kills(count: int, seed: int, names: list[str], root: Path) -> int:
    dice, failures, done = Random(seed), 0, 0
    rights = {name: reference(COMMANDS[name], root / f"right-{name}") for name in names}
    while done < count:
        name = names[done % len(names)]
        command, (right, seconds) = COMMANDS[name], rights[name]
        folder, report = root / "work", root / "said.txt"
        folder.mkdir()
        for _ in range(command.kills):
            child = forked(command.arguments(folder), report)
            if ended(child, dice.uniform(0, 1.1 * seconds)) is None:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                done += 1
            fault = _partly(command, folder, right)
            if fault:
                failures += 1
                print(f"kills: {name} seed {seed}, kill {done}: {fault}", flush=True)
                break
            if command.outputs(folder) and not command.grows:
                break  # complete: what comes next would not write
        if fault := finished(command, folder, right, report):
            failures += 1
            print(f"kills: {name} seed {seed}, after kill {done}: {fault}", flush=True)
        shutil.rmtree(folder)
    print(f"{done} kills of seed {seed}: {failures} bad outputs")
    return failures


def calls(count: int, seed: int, names: list[str], root: Path) -> int:
    shim = ctypes.CDLL(None)  # with what is preloaded
    dice, failures = Random(seed), 0
    rights = {name: reference(COMMANDS[name], root / f"right-{name}")[0] for name in names}
    for number in range(count):
        name, code = names[number % len(names)], dice.choice(CODES)
        command, right = COMMANDS[name], rights[name]
        folder, report = root / "work", root / "said.txt"
        folder.mkdir()
        nth = int(2 ** dice.uniform(0, 9))
        what = f"calls: {name} seed {seed} number {number}, call {nth}, {errno.errorcode.get(code, 'a short write')}"

        def armed(nth: int = nth, code: int = code, folder: Path = folder) -> None:
            shim.fail_nth(nth, code, str(folder).encode(), code in LASTING)

        child = forked(command.arguments(folder), report, armed)
        ending = ended(child, RUN_SECONDS)
        said = report.read_text(errors="replace").strip().replace(str(folder), "F").splitlines() or [""]
        fault = _partly(command, folder, right)
        if ending not in (0, 2):
            fault = f"ended with {ending}: {said[-1][:300]}"
        elif ending == 2 and (len(said[-1]) > LINE_LENGTH or not said[-1].startswith("mlx-imagegen: ")):
            fault = f"said {said[-1][:300]!r}"
        elif ending == 0 and command.outputs(folder) != right:
            fault = "it ended well, and its output differs"
        fault = fault or finished(command, folder, right, report)
        if fault:
            failures += 1
            print(f"{what}: {fault}", flush=True)
        shutil.rmtree(folder)
    print(f"{count} failing calls of seed {seed}: {failures} failures")
    return failures


def _partly(command: Command, folder: Path, right: dict[str, str]) -> str | None:
    try:
        found = command.outputs(folder)
    except OSError as error:  # a picture that cannot be read
        return f"an output is damaged: {error}"
    whole = found.items() <= right.items() if command.grows else not found or found == right
    return None if whole else "an output is incomplete or wrong"


def build_shim(folder: Path) -> Path | None:
    """None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / SHIM
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "fail_nth.c", "-ldl"], check=True)
    return library


def campaign(kind: str, count: int, seed: int, names: list[str]) -> int:
    """In this process, which has the shim preloaded for calls."""
    import mlx_imagegen.cli
    import mlx_imagegen.pipeline
    import mlx_imagegen.quantization.quantizer  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if kind == "calls":
            return calls(count, seed, names, root)
        return kills(count, seed, names, root)


if __name__ == "__main__":
    what, how_many, start, *chosen = sys.argv[1:]
    if what == "calls" and "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory() as place:
            library = build_shim(Path(place))
            if library is None:
                sys.exit("no C compiler is here, or this is no Linux")
            environment = os.environ | {"LD_PRELOAD": str(library)}
            sys.exit(
                subprocess.run([sys.executable, "-m", "tests.fuzz.faults", *sys.argv[1:]], env=environment).returncode
            )
    usual = [
        name for name, command in COMMANDS.items() if what == "kills" or not command.grows
    ]  # shims are of one process
    sys.exit(bool(campaign(what, int(how_many), int(start), chosen or usual)))
