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
    """A text stream, whose failures are ours. `drops`: what cannot be written is left out."""

    def __init__(self, stream: Any, drops: bool):
        self._stream, self._drops = stream, drops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._failures():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failures():
            self._stream.flush()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._drops:
                return
            if isinstance(error, BrokenPipeError):  # the reader has gone, which is its right
                raise
            drop_output()  # Python flushes again at its end
            raise OutputError(f"standard output cannot be written ({error.strerror}); free some room.") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """In whatever encoding. Flush the results within it, where a failure can be reported."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Stream(before[0] or _nothing(), False), _Stream(before[1] or _nothing(), True)
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
