"""Files that others wrote: what is damaged, endless or of another kind is refused by its name, in one line."""

import os
import socket
from pathlib import Path

import pytest

from mlx_imagegen.documents import DEPTH_LIMIT, open_file, parse_json, read_json, read_toml, write_json
from mlx_imagegen.errors import CheckpointError, ConfigError, ImagegenError, MissingFileError

BAD_JSON = {
    "nested too deep for the parser": "[" * 100_000,
    "nested too deep for whoever reads it": '{"a":' * (DEPTH_LIMIT + 1) + "1" + "}" * (DEPTH_LIMIT + 1),
    "a number of 5,000 digits": '{"a": ' + "1" * 5000 + "}",
    "a key twice": '{"a": 1, "a": 2}',
    "not UTF-8": b"\xff\xfe{}",
    "cut": '{"a": ',
    "a list": "[]",
    "empty": "",
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_damaged_json_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    text = BAD_JSON[case]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


def test_nesting_up_to_the_limit_is_read() -> None:
    text = '{"a":' * DEPTH_LIMIT + "1" + "}" * DEPTH_LIMIT
    assert parse_json(text, "here")["a"]


def test_deep_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    for text in ("a = " + "[" * 5000, ".".join("a" * 200) + " = 1", "a = 1\na = 2", "a = " + "9" * 5000):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"q\.toml"):
            read_toml(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, message in (("pipe", "it is a pipe"), ("folder", "Is a directory"), ("socket", "cannot be read")):
            with pytest.raises(CheckpointError, match=message):
                read_json(tmp_path / name, CheckpointError)
    with pytest.raises(ConfigError, match="it is a device"), open_file(Path("/dev/zero")):
        pass
    with pytest.raises(MissingFileError):
        read_json(tmp_path / "absent")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(ImagegenError):
            read_json(tmp_path / name)


def test_an_error_of_the_disk_is_of_the_callers_kind(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(CheckpointError, match="Input/output error"), open_file(tmp_path / "a", CheckpointError):
        raise OSError(5, "Input/output error")


def test_json_is_written_readable_and_all_or_nothing(tmp_path: Path) -> None:
    data = {"prompt": "红狐", "half a pair": "\ud83e", "list": [1]}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == data and "红狐" in text and text.endswith("\n}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == data
    (tmp_path / "a.json.new").write_text("{")  # a run was killed here
    write_json(tmp_path / "a.json", {})
    assert read_json(tmp_path / "a.json") == {} and [path.name for path in tmp_path.iterdir()] == ["a.json"]
