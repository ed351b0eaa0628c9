"""Files of JSON, TOML and text that others wrote, read within limits; and files of JSON, written in one layout.

In: a path, or text and where it is from. Out: plain values of bounded size and depth, in which no key stands twice; or
an error of the kind that the caller names. Only regular files are opened: a pipe would wait for ever.
Must not know: what the values mean.
"""

import functools
import json
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, ImagegenError, MissingFileError
from .escaping import shown

JSON_LIMIT_BYTES = 100 * 2**20  # the largest published tokenizer.json has 35 MB
TOML_LIMIT_BYTES = 2**20  # a manifest has 1 kB
TEXT_LIMIT_BYTES = 100 * 2**20
DEPTH_LIMIT = 32  # published files have 7
DEEP_KEY = re.compile(rf"""(?<!["'\w-])(["'\w-]++\s*+\.\s*+){{{DEPTH_LIMIT}}}""")  # a.b.c
NO_FILES = {stat.S_ISDIR: "Is a directory", stat.S_ISFIFO: "it is a pipe", stat.S_ISSOCK: "it is a socket"}

Kind = type[ImagegenError]
Stamp = tuple[int, ...]


@contextmanager
def open_file(path: Path, kind: Kind = ConfigError, again: str = "download it again") -> Iterator[BufferedReader]:
    """A regular file; a system's error while it is read is of `kind`. `again`: how to get another, for errors."""
    try:
        with os.fdopen(_handle(path, kind, again), "rb") as file:
            yield file
    except ImagegenError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{_name(path)} is not there; {again}, or point to a complete folder.") from error
    except OSError as error:
        raise kind(f"{_name(path)} cannot be read ({error.strerror}); see to its permissions and its disk.") from error


def _handle(path: Path, kind: Kind, again: str) -> int:
    """Opened without waiting for whoever would write to a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in its name
        raise kind(f"{_name(path)} is no file's name ({error}).") from error
    what = no_file(os.fstat(handle))
    if what is None:
        return handle
    os.close(handle)
    raise kind(f"{path} cannot be read ({what}), and a file is needed; {again}.")


def no_file(status: os.stat_result) -> str | None:
    """What stands in the place of a regular file: a pipe would wait for ever, and a device may have no end."""
    if stat.S_ISREG(status.st_mode):
        return None
    return next((text for test, text in NO_FILES.items() if test(status.st_mode)), "it is a device")


def _name(path: Path) -> str:
    return shown(str(path), 200)


def stamp_of(file: IO[bytes]) -> Stamp:
    """Differs whenever a path leads to another file, or to a file that was written to."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_file(path: Path, limit: int, kind: Kind = ConfigError, again: str = "download it again") -> bytes:
    with open_file(path, kind, again) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise kind(f"{path} has more than {limit // 2**20} MB, where no such file is so large; {again}.")
    return data


def read_json(path: Path, kind: Kind = ConfigError, again: str = "download it again") -> dict[str, Any]:
    """A JSON object from a file, with errors that name the file."""
    return parse_object(read_file(path, JSON_LIMIT_BYTES, kind, again), str(path), kind, again)


def parse_object(text: str | bytes, where: str, kind: Kind, again: str) -> dict[str, Any]:
    data = parse_json(text, where, kind, again)
    if not isinstance(data, dict):
        raise kind(f"{_subject(where)} a {type(data).__name__}, not a JSON object; {again}.")
    return data


def parse_json(text: str | bytes, where: str, kind: Kind = ConfigError, again: str = "download it again") -> Any:
    """`where` stands at the beginning of errors."""
    return _parsed(functools.partial(json.loads, object_pairs_hook=_once), "valid JSON", text, where, kind, again)


def read_toml(
    path: Path, kind: Kind = ConfigError, again: str = "take the file that it was made from"
) -> dict[str, Any]:
    return parse_toml(read_file(path, TOML_LIMIT_BYTES, kind, again), str(path), kind, again)


def parse_toml(text: str | bytes, where: str, kind: Kind, again: str) -> dict[str, Any]:
    def loads(text: str) -> dict[str, Any]:
        if DEEP_KEY.search(text):  # a parser takes their square in time
            raise RecursionError
        return tomllib.loads(text)

    data: dict[str, Any] = _parsed(loads, "a TOML file", text, where, kind, again)
    return data


def _parsed(loads: Callable[[str], Any], form: str, text: str | bytes, where: str, kind: Kind, again: str) -> Any:
    subject = _subject(where)
    try:
        value = loads(text.decode() if isinstance(text, bytes) else text)
        if _is_deep(value):
            raise RecursionError
    except RecursionError as error:
        raise kind(f"{subject} nested more than {DEPTH_LIMIT} deep; {again}.") from error
    except ValueError as error:  # of another form, not UTF-8, a key twice, or a number of thousands of digits
        raise kind(f"{subject} not {form} ({shown(str(error), 120)}); {again}.") from error
    return value


def _subject(where: str) -> str:
    return where if where.endswith(":") else f"{where} is"


def write_json(path: Path, data: Any) -> None:
    """All or nothing. What a run that was killed leaves has a fixed name: the next run replaces it."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json_text(data), encoding="utf-8")
    temporary.replace(path)


def json_text(data: Any) -> str:
    """As a file of JSON has it: readable characters, but half a surrogate pair, which UTF-8 does not have."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace").decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json keeps the last of several values of a key, other readers the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key '{shown(twice)}' stands in it twice")
    return found


def _is_deep(value: Any) -> bool:
    """Level by level: whoever goes through the value later may do so by recursion."""
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
