"""Paths as users write them, and which files of a folder are meant."""

from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.errors import RequestError
from mlx_imagegen.paths import expanded, is_file_name, visible


def test_a_home_that_nobody_has_is_a_name(tmp_path: Path) -> None:
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert expanded("~/x") == Path.home() / "x"


@pytest.mark.parametrize("path", [5, None, ["a"], "a\0b"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(RequestError, match="is no path|is no file's name"):
        expanded(path)


def test_files_of_macos_are_not_the_models(tmp_path: Path) -> None:
    for name in ("._b.safetensors", "b.safetensors", "a.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path, "*.safetensors")] == ["a.safetensors", "b.safetensors"]


def test_names_that_lead_out_of_a_folder_are_none() -> None:
    assert is_file_name("model-00001-of-00002.safetensors")
    for name in ("", ".", "..", "/etc/passwd", "../a", "a/b", "a\\b", "a\0", "x" * 256, 5, None):
        assert not is_file_name(name)
