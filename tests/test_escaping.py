"""What comes out of files reaches a terminal as text, in one line, shortened."""

import pytest

from mlx_imagegen.errors import (
    CheckpointError,
    DownloadError,
    FileAccessError,
    ImagegenError,
    MissingFileError,
    file_errors,
)
from mlx_imagegen.escaping import LONGEST_MESSAGE, listed, one_line, quoted, shown


def test_nothing_in_a_message_steers_a_terminal() -> None:
    for kind in (ImagegenError, CheckpointError, MissingFileError, DownloadError):
        message = str(kind("a \x1b[31mred\x1b[0m\r\nname\u202e \x07"))
        assert message == "a \\x1b[31mred\\x1b[0m name\\u202e \\x07"


def test_a_message_is_bounded() -> None:
    message = str(CheckpointError("begin " + "x" * 20_000 + " end"))
    assert len(message) == LONGEST_MESSAGE and message.startswith("begin") and message.endswith("end")


def test_a_list_of_names_is_bounded_as_a_whole() -> None:
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a", "b", "c", "d", "e"], joint="; ") == "a; b; c … and 2 more"
    assert len(listed(["x" * 1000] * 5000, 3, 150)) < 180


def test_values_are_shortened_whatever_they_are() -> None:
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 5000, list(range(10_000)), deep, 10**5000, {"a": {"b": {"c": {"d": {}}}}}, "\ud800"):
        assert len(shown(value)) <= 80
        shown(value).encode()
    assert quoted("a") == "'a'" and quoted(5) == "5" and one_line("ä ▁ 字") == "ä ▁ 字"


def test_a_failing_system_call_becomes_an_error_of_this_library() -> None:
    with pytest.raises(FileAccessError, match="/x/y: Read-only file system"), file_errors():
        raise OSError(30, "Read-only file system", "/x/y")
    with pytest.raises(DownloadError, match="as it is"), file_errors():
        raise DownloadError("as it is")
