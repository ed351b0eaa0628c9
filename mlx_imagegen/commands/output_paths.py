"""Where pictures go: a pattern such as "{prompt}-{seed}.png" -> one path a picture, all different, all writable."""

import argparse
import contextlib
import os
import re
import string
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..escaping import shown
from ..paths import expanded

if TYPE_CHECKING:
    from ..hub.manifest import Manifest
    from ..request.job import Job
    from ..result import StepEvent

DEFAULT_PATTERN = "{prompt}-{seed}.png"
SLUG_LENGTH = 48
LONGEST_NAME = 255  # bytes of a file's name
FIELDS = ("prompt", "seed", "index", "model", "steps", "width", "height", "guidance")


def output_paths(pattern: str, jobs: "Sequence[Job]", manifest: "Manifest") -> list[Path]:
    """One path for every job; {index} counts from 1. A folder, which ends in a slash, is made where it is missing."""
    from ..image import check_writable, picture_format

    if not pattern:
        raise RequestError("--output is empty; give a file's name or a folder.")
    new = expanded(pattern) if pattern.endswith("/") else None
    if new or _is_folder(expanded(pattern)):
        pattern = str(expanded(pattern) / DEFAULT_PATTERN)
    _check(pattern)
    try:
        paths = [expanded(pattern.format(**_fields(job, n, manifest))) for n, job in enumerate(jobs, 1)]
    except (ValueError, KeyError, IndexError) as error:
        raise RequestError(f"--output {pattern}: it cannot be filled in ({error}); {_known()}") from error
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise RequestError(
            f"--output {pattern}: {times} pictures would be written to {path}; put {{seed}} or {{index}} into the name."
        )
    for path, job in zip(paths, jobs, strict=True):
        picture_format(path, alpha=bool(job.settings.extras.get("transparent") or job.settings.extras.get("layers")))
    largest = max(job.settings.width * job.settings.height for job in jobs)
    if new:
        with contextlib.suppress(OSError, ValueError):  # check_writable says what is wrong with it
            new.mkdir(exist_ok=True)
    longest = sorted(paths, key=lambda path: len(os.fsencode(path)))
    for path in {path.parent: path for path in longest}.values():
        check_writable(path, largest)
    return paths


def existing(paths: Sequence[Path], overwrite: bool, skip: bool) -> set[Path]:
    """The pictures that are there and are not drawn again; raises where nobody said what to do with them."""
    present = set() if overwrite else {path for path in paths if path.exists()}
    if present and not skip:
        first = next(path for path in paths if path in present)
        others = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise RequestError(
            f"{first} is there already{others}; add --overwrite to replace it, --skip-existing to draw only what is "
            "missing, or give another -o."
        )
    return present


def skipped(present: Collection[Path]) -> str:
    return f"skipped: {len(present)} {'picture is' if len(present) == 1 else 'pictures are'} there already"


def step_path(path: Path, event: "StepEvent", every: int | None) -> Path | None:
    """Where the unfinished picture of a step is written, next to the finished one's `path`; None: nowhere."""
    if not every or event.step % every or event.step == event.steps:
        return None
    return path.with_name(f"{path.stem}.step{event.step:03}{path.suffix}")


def what_to_save(args: argparse.Namespace) -> dict[str, bool]:
    """As `Result.save` takes it."""
    return {"metadata": not args.no_metadata, "report": not args.no_report, "paths": args.record_paths}


@contextlib.contextmanager
def new_folder(pattern: str) -> Iterator[None]:
    """A folder that `output_paths` makes inside is removed again where no picture came into it."""
    made = expanded(pattern) if pattern.endswith("/") and not _is_folder(expanded(pattern)) else None
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError, ValueError):
                made.rmdir()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a folder that may not be looked into: check_writable says so
        return False


def _fields(job: "Job", index: int, manifest: "Manifest") -> dict[str, Any]:
    settings = job.settings
    return {
        "prompt": _slug(job.asked), "seed": job.seed, "index": index, "model": manifest.name,
        "steps": settings.steps, "width": settings.width, "height": settings.height,
        "guidance": job.guidance(manifest.guidance),
    }  # fmt: skip


def _check(pattern: str) -> None:
    """Plain field names only: a pattern must not reach into objects."""
    try:
        parts = [(field, form) for _, field, form, _ in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        raise RequestError(f"--output {pattern}: {error}; write {{{{ and }}}} for braces meant as such.") from error
    unknown = [field for field, _ in parts if field not in FIELDS]
    if unknown:
        raise RequestError(f"--output {pattern}: there is no {{{shown(unknown[0])}}}; {_known()}")
    for _, form in parts:
        if any(len(number) > 3 or int(number) > LONGEST_NAME for number in re.findall("[0-9]+", form or "")):
            raise RequestError(f"--output: ':{shown(form)}' makes a name of more than {LONGEST_NAME} bytes.")


def _known() -> str:
    return f"known: {', '.join('{' + name + '}' for name in FIELDS)}."


def _slug(text: str) -> str:
    """The prompt's first words."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")
    if len(words) > SLUG_LENGTH:
        words = words[:SLUG_LENGTH].rpartition("-")[0] or words[:SLUG_LENGTH]
    return words or "picture"
