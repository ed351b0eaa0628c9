"""Paths as users write them, and which files of a folder are meant."""

from pathlib import Path

from mlx_imagegen.paths import expanded, is_file_name, visible


def test_a_home_that_nobody_has_is_a_name(tmp_path: Path) -> None:
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert expanded("~/x") == Path.home() / "x"


def test_files_of_macos_are_not_the_models(tmp_path: Path) -> None:
    for name in ("._b.safetensors", "b.safetensors", "a.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path, "*.safetensors")] == ["a.safetensors", "b.safetensors"]


def test_names_that_lead_out_of_a_folder_are_none() -> None:
    assert is_file_name("model-00001-of-00002.safetensors")
    for name in ("", ".", "..", "/etc/passwd", "../a", "a/b", "a\\b", "a\0", "x" * 256, 5, None):
        assert not is_file_name(name)
