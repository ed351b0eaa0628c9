"""What is kept on disk: whole or not at all, checked when it is read, bounded, and nothing left behind by Ctrl-C."""

import os
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen import cache
from mlx_imagegen.cache import keep, recall


def arrays(seed: int = 0, rows: int = 4) -> dict[str, mx.array]:
    drawn = mx.random.normal((rows, 8), key=mx.random.key(seed))
    return {"a": drawn, "b": drawn.astype(mx.bfloat16)}


def check(folder: Path, key: str, expected: dict[str, mx.array]) -> None:
    found = recall(folder, key)
    assert found is not None and found.keys() == expected.keys()
    assert all(
        found[name].dtype == value.dtype and mx.array_equal(found[name], value) for name, value in expected.items()
    )


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    assert recall(folder, "x") is None
    assert keep(folder, "x", arrays(0)) is None and keep(folder, "y", arrays(1)) is None
    check(folder, "x", arrays(0))
    check(folder, "y", arrays(1))
    keep(folder, "x", arrays(2))
    check(folder, "x", arrays(2))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "no sum"])
def test_a_damaged_file_is_not_believed(tmp_path: Path, damage: str) -> None:
    keep(tmp_path, "x", arrays())
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    changed = {
        "flip": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "cut": data[:-1],
        "empty": b"",
        "text": b"nothing of ours" * 20,
        "no sum": data.replace(b"crc32", b"crc31"),
    }
    path.write_bytes(changed[damage])
    assert recall(tmp_path, "x") is None
    keep(tmp_path, "x", arrays())
    check(tmp_path, "x", arrays())


def test_the_longest_unused_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "a", arrays())
    size = next(tmp_path.iterdir()).stat().st_size
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * size)
    for age, key in enumerate("abc"):
        keep(tmp_path, key, arrays(age))
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    check(tmp_path, "a", arrays(0))  # now the latest used
    keep(tmp_path, "d", arrays(3))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "a", arrays())
    monkeypatch.setattr(cache, "LIMIT_BYTES", sum(array.nbytes for array in arrays().values()))
    assert "too large" in str(keep(tmp_path, "b", arrays(rows=5)))
    assert recall(tmp_path, "b") is None
    check(tmp_path, "a", arrays())  # and nothing had to go for it


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "a", arrays(0))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, "a", arrays(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    check(tmp_path, "a", arrays(0))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in str(keep(tmp_path / "file", "a", arrays()))
    assert recall(tmp_path / "file", "a") is None


def test_another_header_is_other_arrays(tmp_path: Path) -> None:
    """The sum is of names, types and shapes too: the same bytes under another type are other numbers."""
    keep(tmp_path, "key", {"x": mx.ones((2, 8), mx.float16)})
    path = tmp_path / "key.safetensors"
    data = path.read_bytes()
    for before, after in ((b'"F16"', b'"I16"'), (b"[2,8]", b"[8,2]"), (b'"x"', b'"y"')):
        assert before in data
        path.write_bytes(data.replace(before, after))
        assert recall(tmp_path, "key") is None
    path.write_bytes(data)
    assert recall(tmp_path, "key") is not None


def test_a_name_that_is_no_text_is_another_array(tmp_path: Path) -> None:
    """JSON may hold half of a surrogate pair."""
    keep(tmp_path, "key", {"x": mx.ones((4,))})
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"x":', b'"\\ud800":', 1))
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    path.write_bytes((header + 5).to_bytes(8, "little") + data[8:])
    assert recall(tmp_path, "key") is None
