"""Downloads that are not what was published are refused and removed, and each is read through once."""

import hashlib
import os
from pathlib import Path

import pytest

from mlx_imagegen.hub import checksums
from mlx_imagegen.hub.checksums import remove_damaged


def put(cache: Path, data: bytes, published: bytes) -> Path:
    """A snapshot with one file, as the hub's client lays it."""
    blob = cache / "blobs" / hashlib.sha256(published).hexdigest()
    folder = cache / "snapshots" / "0"
    for place in (blob.parent, folder):
        place.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    (folder / "a.safetensors").symlink_to(blob)
    return folder


@pytest.mark.parametrize("damage", [lambda data: data[:50] + bytes(50), lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_download_of_the_right_size_and_other_bytes_is_removed(damage: object, tmp_path: Path) -> None:
    published = os.urandom(100)
    folder = put(tmp_path, damage(published), published)  # type: ignore[operator]
    assert remove_damaged(folder, ["*.safetensors"], print) == ["a.safetensors"]
    assert not list(folder.iterdir()) and not list((tmp_path / "blobs").iterdir())
    assert not remove_damaged(put(tmp_path, published, published), ["*.safetensors"], print)


def test_a_file_is_read_through_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = os.urandom(100)
    folder = put(tmp_path, published, published)
    remove_damaged(folder, ["*.safetensors"], print)
    read: list[Path] = []
    hash_of = checksums.hash_of
    monkeypatch.setattr(checksums, "hash_of", lambda blob: read.append(blob) or hash_of(blob))
    remove_damaged(folder, ["*.safetensors"], print)
    assert not read
    (folder / "a.safetensors").resolve().write_bytes(published)
    remove_damaged(folder, ["*.safetensors"], print)
    assert len(read) == 1


def test_small_files_are_named_by_gits_hash(tmp_path: Path) -> None:
    blob = tmp_path / "ce013625030ba8dba906f756967f9e9ca394464a"  # what `git hash-object` says of "hello\n"
    blob.write_bytes(b"hello\n")
    assert checksums.hash_of(blob) == blob.name
