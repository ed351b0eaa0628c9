"""All errors that a user can cause or see, as one tree.

    ImagegenError
    ├── RequestError          (ValueError)          a parameter, a flag, a prompt or a picture is wrong
    ├── UnknownModelError     (ValueError)          no manifest, repository or folder of that name
    ├── ConfigError           (ValueError)          a config.json is missing a field or names another architecture
    ├── CheckpointError       (ValueError)          a tensor file is truncated, corrupt, incomplete or does not fit
    │   └── MismatchError                           missing, unexpected and misshapen tensors, gathered
    ├── LoraError             (ValueError)          a LoRA does not match, or cannot be merged
    ├── QuantizationError     (ValueError)          a recipe, bit width or output that cannot be used
    ├── MissingFileError      (FileNotFoundError)   a file or folder that should be there is not
    ├── FileAccessError       (OSError)             the system refuses or fails to read or write a file
    ├── DownloadError         (OSError)             gated, offline, no room, or an incomplete download
    ├── OutputError           (OSError)             a picture or folder cannot be written
    ├── DistributedError      (ConnectionError)     one of several ranks, its host or the way to it has failed
    └── InsufficientMemoryError (MemoryError)        the run cannot fit in this machine

A message is one line: what happened, why, and how to fix it. Text quoted from files is escaped. The CLI prints the
message and exits with code 2.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .escaping import one_line, shown


class ImagegenError(Exception):
    """Root of the tree: `except ImagegenError` catches everything this library raises on purpose."""

    def __init__(self, message: str = ""):
        super().__init__(one_line(message))


class RequestError(ImagegenError, ValueError):
    pass


class UnknownModelError(ImagegenError, ValueError):
    pass


class ConfigError(ImagegenError, ValueError):
    pass


class CheckpointError(ImagegenError, ValueError):
    pass


class MismatchError(CheckpointError):
    pass


class LoraError(ImagegenError, ValueError):
    pass


class QuantizationError(ImagegenError, ValueError):
    pass


class MissingFileError(ImagegenError, FileNotFoundError):
    pass


class FileAccessError(ImagegenError, OSError):
    pass


class DownloadError(ImagegenError, OSError):
    pass


class OutputError(ImagegenError, OSError):
    pass


class DistributedError(ImagegenError, ConnectionError):
    pass


class InsufficientMemoryError(ImagegenError, MemoryError):
    pass


def described(error: BaseException) -> str:
    """An error's message in one line, after its class if it is not one of this library's."""
    return str(error) if isinstance(error, ImagegenError) else one_line(f"{type(error).__name__}: {error}")


@contextmanager
def file_errors() -> Iterator[None]:
    """Wraps what a user calls: any system call that fails inside is reported with the name of the file."""
    try:
        yield
    except (ImagegenError, BrokenPipeError):
        raise
    except OSError as error:
        if isinstance(error, ConnectionError) and error.filename is None:  # a caller's own, from a callback
            raise
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else "a file"
        reason = error.strerror or str(error) or type(error).__name__
        denied = isinstance(error, PermissionError)
        remedy = "allow it, or give another place" if denied else "see to its name and its disk, or give another place"
        raise FileAccessError(f"{shown(os.fsdecode(name), 160)}: {reason}; {remedy}.") from error
