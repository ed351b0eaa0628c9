"""Reading safetensors, and refusing every way in which such a file can be damaged."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_imagegen.errors import CheckpointError, ConfigError, MissingFileError
from mlx_imagegen.loading.checkpoint import DTYPES, open_checkpoint, read_header


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def shards(folder: Path, **files: dict[str, np.ndarray]) -> Path:
    """Files of one checkpoint and the index over them."""
    folder.mkdir()
    weight_map = {}
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_tensors_come_back_as_they_were_written(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    written = {
        "f32": dice.standard_normal((3, 4)).astype(np.float32),
        "f16": dice.standard_normal((2, 3, 4)).astype(np.float16),
        "u32": dice.integers(0, 2**32, (5,), np.uint32),
        "i64": np.array(-7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(written, tmp_path / "a.safetensors", {"made": "here"})
    opened = open_checkpoint(tmp_path / "a.safetensors")
    assert set(opened) == set(written)
    assert opened.nbytes == sum(array.nbytes for array in written.values())
    for name, array in written.items():
        np.testing.assert_array_equal(np.array(opened[name].read()), array)
    assert read_header(tmp_path / "a.safetensors")[1] == {"made": "here"}


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    values = mx.array([1.5, -2.25, 3e38, 0.1], mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"x": values})
    read = open_checkpoint(tmp_path)["x"].read()
    assert read.dtype == mx.bfloat16
    assert mx.array_equal(read, values)


def test_fp8_is_decoded(tmp_path: Path) -> None:
    # 1, -2, 448 (the largest), 0.015625 in e4m3
    write(tmp_path / "a.safetensors", {"x": entry(0, 4, "F8_E4M3", (4,))}, bytes([0x38, 0xC0, 0x7E, 0x08]))
    assert open_checkpoint(tmp_path)["x"].read().tolist() == [1.0, -2.0, 448.0, 0.015625]


def test_rows_are_read_alone(tmp_path: Path) -> None:
    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    save_file({"table": table}, tmp_path / "a.safetensors")
    tensor = open_checkpoint(tmp_path)["table"]
    np.testing.assert_array_equal(np.array(tensor.read(3, 2)), table[3:5])
    np.testing.assert_array_equal(np.array(tensor.gather([7, 0, 7])), table[[7, 0, 7]])
    for outside in (10, -1):
        with pytest.raises(CheckpointError, match=f"10 rows, row {outside} was"):
            tensor.gather([1, outside])


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    one, two = np.ones((2, 2), np.float32), np.zeros(3, np.float32)
    opened = open_checkpoint(shards(tmp_path / "model", first={"a": one}, second={"b": two}))
    assert set(opened) == {"a", "b"}
    np.testing.assert_array_equal(np.array(opened["a"].read()), one)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "an empty file": ({"raw": b""}, "not a complete safetensors file: it is only 0 bytes long"),
    "less than a header's length": ({"raw": bytes(7)}, "it is only 7 bytes long"),
    "metadata that are none": ({"header": {"__metadata__": 5}}, "'__metadata__' is not a JSON object"),
    "a header longer than the file": ({"header": {}, "length": 10**8}, "should be 100000000 bytes long"),
    "a header longer than 64 bits of sense": (
        {"header": {}, "length": 2**63},
        "is no safetensors file: it begins with b",
    ),
    "a picture": ({"raw": b"\x89PNG\r\n\x1a\nrubbish"}, r"begins with b'\\x89PNG\\r\\n\\x1a\\n', not with"),
    "a pointer of git's": (
        {"raw": b"version https://git-lfs.github.com/spec/v1\n"},
        "is a Git LFS pointer.*git lfs pull",
    ),
    "a header of no length": ({"header": b"", "length": 0}, "not a complete safetensors file"),
    "no JSON": ({"header": b"{]"}, "header is not valid JSON"),
    "no text": ({"header": b"\xff\xfe{}"}, "header is not valid JSON"),
    "no object": ({"header": b"[1]"}, "not a JSON object"),
    "an entry without offsets": ({"header": {"x": {"dtype": "F32", "shape": [2]}}}, "'x' is malformed"),
    "an entry that is no object": ({"header": {"x": 3}}, "'x' is malformed"),
    "a negative size": ({"header": {"x": entry(0, 8, shape=(-2,))}, "data": bytes(8)}, "negative or fractional"),
    "a fractional offset": (
        {"header": {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8.5]}}, "data": bytes(9)},
        "negative or fractional",
    ),
    "a dtype that is no name": (
        {"header": {"x": entry(0, 8) | {"dtype": ["F32"]}}, "data": bytes(8)},
        "which is not supported",
    ),
    "an unknown dtype": (
        {"header": {"x": entry(0, 8, "F4")}, "data": bytes(8)},
        "dtype F4, which is not supported.* Take the bf16",
    ),
    "another dtype than the bytes": (
        {"header": {"x": entry(0, 8, "F16")}, "data": bytes(8)},
        "needs 4 bytes, its offsets give 8",
    ),
    "data cut off": (
        {"header": {"x": entry(0, 8)}, "data": bytes(5)},
        "5 bytes long, its header describes|header describes",
    ),
    "data to spare": ({"header": {"x": entry(0, 8)}, "data": bytes(12)}, "its header describes"),
    "overlapping tensors": ({"header": {"x": entry(0, 8), "y": entry(4, 12)}, "data": bytes(12)}, "'y' overlaps"),
    "the same bytes twice": ({"header": {"x": entry(0, 8), "y": entry(0, 8)}, "data": bytes(8)}, "overlaps"),
    "a gap": ({"header": {"x": entry(0, 8), "y": entry(12, 20)}, "data": bytes(20)}, "'y' leaves a gap"),
    "offsets turned round": ({"header": {"x": entry(8, 0)}, "data": bytes(8)}, "its offsets give -8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_and_refused(case: str, tmp_path: Path) -> None:
    making, message = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    if "raw" in making:
        path.write_bytes(making["raw"])
    else:
        write(path, **making)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float16)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    save_file({"a": np.ones((64, 64), np.float32)}, tmp_path / "a.safetensors")
    opened = open_checkpoint(tmp_path)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ended while 'a' was read"):
        opened["a"].read()


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A folder stands for a file without permissions, which root could read."""
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read \(Is a directory\)"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.safetensors.index.json").mkdir()
    with pytest.raises(ConfigError, match=r"index.json cannot be read \(Is a directory\)"):
        open_checkpoint(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere is not there"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="no .safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(MissingFileError, match="pickles can run code"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", first={"a": np.ones(2, np.float32)}, second={"b": np.ones(2, np.float32)})
    (folder / "second.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 2 shards are missing \(second.safetensors\)"):
        open_checkpoint(folder)


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", first={"a": np.ones(2, np.float32)}, second={"b": np.ones(2, np.float32)})
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"c": "first.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"1 tensors that no shard holds \(c\)"):
        open_checkpoint(folder)
    index.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        open_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no 'weight_map'"):
        open_checkpoint(folder)
    for name in (5, ["first.safetensors"], None):
        index.write_text(json.dumps({"weight_map": weight_map | {"b": name}}))
        with pytest.raises(CheckpointError, match="'weight_map' must give a file's name for every tensor"):
            open_checkpoint(folder)


def test_of_two_indexes_none_is_taken(tmp_path: Path) -> None:
    """A full set of weights and an fp16 variant, as both are called when they are saved next to each other."""
    folder = shards(tmp_path / "model", first={"a": np.ones(2, np.float32)})
    index = folder / "model.safetensors.index.json"
    for variant in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        shutil.copy(index, folder / variant)
        with pytest.raises(CheckpointError, match=f"2 sets of weights .*{variant}.*leave the index of one"):
            open_checkpoint(folder)
        (folder / variant).unlink()
    index.rename(folder / "model.safetensors.index.fp16.json")
    assert set(open_checkpoint(folder)) == {"a"}, "a variant by itself is a checkpoint like any other"


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", first={"a": np.ones(2, np.float32)}, second={"b": np.ones(2, np.float32)})
    save_file({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, folder / "second.safetensors")
    with pytest.raises(CheckpointError, match="'a' also lies in first.safetensors"):
        open_checkpoint(folder)


def test_files_without_an_index_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="2 .safetensors files"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(MissingFileError, match="no index file"):
        open_checkpoint(tmp_path)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2, np.float32)}, path)
    before = open_checkpoint(path).stamp
    assert open_checkpoint(path).stamp == before
    save_file({"a": np.ones(3, np.float32)}, path)
    assert open_checkpoint(path).stamp != before


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"}))
def test_every_dtype_is_read_at_its_width(dtype: str, tmp_path: Path) -> None:
    carrier, kind = DTYPES[dtype]
    width = np.dtype(carrier).itemsize
    write(tmp_path / "a.safetensors", {"x": entry(0, 2 * width, dtype)}, bytes(2 * width))
    read = open_checkpoint(tmp_path)["x"].read()
    assert (read.dtype, read.shape) == (kind, (2,))


def test_a_file_that_is_replaced_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    """Tensors in another order, in a file of the same length: the former offsets would give other numbers."""
    path, other = tmp_path / "a.safetensors", tmp_path / "other"
    write(path, {"x": entry(0, 8), "y": entry(8, 16)}, bytes(16))
    opened = open_checkpoint(path)
    opened["x"].read()
    write(other, {"y": entry(0, 8), "x": entry(8, 16)}, bytes(16))
    other.replace(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors changed while it was read, or was replaced"):
        opened["x"].read()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "sub/x.safetensors", ".."])
def test_an_index_names_no_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", first={"a": np.ones(2, np.float32)})
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="in the same folder"):
        open_checkpoint(folder)


def test_files_whose_names_begin_with_a_dot_are_not_weights(tmp_path: Path) -> None:
    """macOS writes ._model.safetensors next to model.safetensors on disks of other systems."""
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "._model.safetensors").write_bytes(b"\0\5\26\7")
    (tmp_path / "._model.safetensors.index.json").write_bytes(b"\0\5\26\7")
    assert set(open_checkpoint(tmp_path)) == {"a"}


def test_shapes_that_mlx_cannot_hold_are_refused(tmp_path: Path) -> None:
    for shape in ([1] * 65, [2**40, 0]):
        size = 4 if 0 not in shape else 0
        header = {"x\x1b[2J": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        write(tmp_path / "model.safetensors", header, bytes(size))
        with pytest.raises(CheckpointError, match=r"x\\x1b\[2J' has the shape"):
            open_checkpoint(tmp_path)
