"""A folder that is complete or absent: it grows next to its place, under another name, and is renamed at the end.

In: the place, what it is made from (an identity), how many bytes it will hold. Out: `Partial`, with a journal of what
is finished, so that a run that was cut off, by kill -9 or a full disk, goes on where it stopped if it is made from the
same, and else starts again. A folder that we did not make is never touched.
Must not know: what the files hold.
"""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..documents import read_json, write_json
from ..errors import ImagegenError, OutputError, QuantizationError
from ..hub.record import RECORD
from ..paths import expanded, visible
from ..planning.plan import gigabytes

JOURNAL = "journal.jsonl"
PARTIAL_SUFFIX = ".partial"  # how a folder's name ends until it is complete
MOST_WORKERS = 256  # threads
SPARE_BYTES = 10**9  # left free on the disk


class Journal:
    """What is finished in a partial folder: one line for the identity, then one a piece."""

    def __init__(self, file: IO[bytes], done: set[str]):
        self.done = done
        self._file = file
        self._lock = threading.Lock()

    def finish(self, key: str) -> None:
        """One write a line, so that a kill leaves complete lines or a torn last one, which counts as none."""
        with self._lock:
            self._file.write(f"{key}\n".encode())


@dataclass(frozen=True)
class Partial:
    target: Path
    identity: str  # of the inputs, the recipe and this tool: only equal ones may share a folder

    @property
    def folder(self) -> Path:
        return partial_path(self.target)

    @property
    def is_complete(self) -> bool:
        """Whether the target is complete already, made from the same."""
        return recorded(self.target) == self.identity

    @property
    def is_written(self) -> bool:
        """Whether only the renaming is left."""
        return recorded(self.folder) == self.identity

    @property
    def foreign_bytes(self) -> int:
        """What another conversion left in the partial folder, which `journal` removes."""
        try:
            with (self.folder / JOURNAL).open("rb") as file:
                if file.readline().decode(errors="replace").rstrip("\n") == self.identity:
                    return 0
        except OSError:
            return 0
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def seal(self, record: Mapping[str, Any]) -> None:
        """The record comes last, when all else is on the disk: with it the folder counts as complete."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # not even a power cut may leave a renamed folder with holes in it
        write_json(self.folder / RECORD, {**record, "identity": self.identity})

    def rename(self) -> None:
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self.folder.rename(self.target)

    def refuse_foreign_folder(self) -> None:
        check_place(self.target)
        partial = self.folder
        if recorded(self.target) is not None:
            raise QuantizationError(
                f"{self.target} was made from other files or by another recipe; it is left as it is. Remove it, or "
                "give another output."
            )
        # An empty one is left by a run that was killed before it had a journal.
        if partial.exists() and not (partial / JOURNAL).is_file() and recorded(partial) is None and _holds(partial):
            raise QuantizationError(
                f"{partial} is in the way and was not made by quantize; remove it, or give another output."
            )

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Locked for this process. Whatever another identity left is removed."""
        with self._opened() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    reason = f"another quantize is writing {self.target} now; let it finish, or give another output."
                else:
                    cause = f"cannot be locked ({error.strerror}), so another run could spoil it"
                    reason = f"{self.folder} {cause}; give an output on another disk."
                raise OutputError(reason) from error
            self._check_current(file)
            file.seek(0)
            *lines, torn = file.read().decode(errors="replace").split("\n")
            if lines[:1] != [self.identity]:
                # Record and journal go first: whoever left them must not find them next to what is half cleared.
                (self.folder / RECORD).unlink(missing_ok=True)
                file.truncate(0)
                _clear(self.folder)
                file.write(f"{self.identity}\n".encode())
                lines = []
            elif torn:
                file.write(b"\n")  # ends the torn line; no piece has its name
            yield Journal(file, set(lines[1:]))

    def _check_current(self, journal: IO[bytes]) -> None:
        """Another run may have finished between the opening of its journal here and the lock: then the file that is
        locked is in no folder any more, or in one that is not needed."""
        try:
            here = os.path.samestat(os.fstat(journal.fileno()), (self.folder / JOURNAL).stat())
        except FileNotFoundError:
            here = False
        if here and recorded(self.target) is None:
            return
        if here and os.fstat(journal.fileno()).st_size == 0:
            _remove_empty(self.folder)
        raise OutputError(f"another quantize has finished {self.target} meanwhile; run it again to see which it is.")

    def _opened(self) -> IO[bytes]:
        try:
            self.folder.mkdir(exist_ok=True)
            return (self.folder / JOURNAL).open("ab+", buffering=0)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written ({error.strerror}); give an output in a folder that you may write to."
            ) from error

    def check_room(self, need: int) -> None:
        """Before anything is made."""
        present = sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.target.parent).free
        if need + SPARE_BYTES > free + present:
            raise OutputError(
                f"{self.target} needs {gigabytes(need)} (and {SPARE_BYTES / 1e9:.0f} GB to spare), and its disk has "
                f"{gigabytes(free + present)}. Free some room, or give an output folder on another disk."
            )

    @contextmanager
    def explain_failures(self) -> Iterator[None]:
        try:
            yield
        except ImagegenError:
            raise
        except OSError as error:
            place, again = error.filename or self.folder, "run it again: it goes on from there."
            if error.errno == errno.EFBIG:
                limit = "its disk's file system or a limit of this process allows"
                reason = f"{place} became larger than {limit}; give an output on another disk."
            elif error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = f"the disk became full while {self.folder} was written; free some room and {again}"
            else:
                reason = f"{place} could not be written or copied ({error.strerror}); see to its disk and {again}"
            raise OutputError(reason) from error


def partial_path(target: Path) -> Path:
    """Where a folder grows until it is complete."""
    return target.with_name(target.name + PARTIAL_SUFFIX)


def place_of(output: str | Path) -> Path:
    """Where the folder will be: a link's own place cannot be renamed over."""
    if not str(output):
        raise OutputError("the output's name is empty; give a folder.")
    target = expanded(output).absolute()
    return target.resolve() if target.is_symlink() else target


def check_place(target: Path) -> None:
    """Refuses what does not depend on what will be made there."""
    if target.name.endswith(PARTIAL_SUFFIX):
        raise QuantizationError(
            f"{target}: a folder that is half done is called so, and the next run may clear it; give the name without "
            f"{PARTIAL_SUFFIX}: what is there is gone on with."
        )
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a folder; make it first, or give another output.")
    if target.exists() and recorded(target) is None and not (target.is_dir() and not any(target.iterdir())):
        raise QuantizationError(
            f"{target} is there already and was not made by quantize; it is left as it is. Remove it, or give another "
            "output."
        )


def recorded(folder: Path) -> str | None:
    """The identity of a complete folder of ours; None for every other."""
    try:
        identity = read_json(folder / RECORD).get("identity")
    except (OSError, ImagegenError):
        return None
    return identity if isinstance(identity, str) else None


def _holds(folder: Path) -> bool:
    return not folder.is_dir() or bool(visible(folder, "*"))


def _remove_empty(folder: Path) -> None:
    """A folder with nothing but a journal."""
    if {path.name for path in folder.iterdir()} <= {JOURNAL}:
        (folder / JOURNAL).unlink(missing_ok=True)
        folder.rmdir()


def _clear(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != JOURNAL:
            path.unlink()
