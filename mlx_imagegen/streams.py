"""Standard output and error of the command line, in whatever state the caller left them.

Results that cannot be written are an error; notes that cannot be written are left out, and the work goes on. A closed
one is opened on nothing: the next file that is opened would take its number, and be written to by whatever warns.
Must not know: what is written.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputError

STANDARD = (0, 1, 2)


class _Stream:
    """A text stream, whose failures are ours."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Results(_Stream):
    def write(self, text: str) -> int:
        with self._explained():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with self._explained():
            self._stream.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader has gone, which is its right
            raise
        except OSError as error:
            drop_output()  # Python flushes again at its end
            raise OutputError(f"standard output cannot be written ({error.strerror}); free some room.") from error


class _Notes(_Stream):
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """In whatever encoding. Flush the results within it, where a failure can be reported."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Results(before[0] or _nothing()), _Notes(before[1] or _nothing())
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _nothing() -> IO[str]:
    return Path(os.devnull).open("w")


def drop_output() -> None:
    """Nothing more goes to standard output."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
