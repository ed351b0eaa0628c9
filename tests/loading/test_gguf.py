"""Reading GGUF files as the `gguf` package writes them, by rows, and refusing every way in which one can be damaged."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_files import Drawn, Header, dequantized, draw_blocks, encode, write_gguf

from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.loading.blocks import BLOCK_FORMATS
from mlx_imagegen.loading.checkpoint import Checkpoint, open_checkpoint

UNPACKED = [Kind(number) for number, form in BLOCK_FORMATS.items() if form.bits is None]
PACKED = [Kind(number) for number, form in BLOCK_FORMATS.items() if form.bits]


def opened(path: Path, **tensors: Drawn) -> Checkpoint:
    return open_checkpoint(write_gguf(path / "model.gguf", {name.replace("__", "."): t for name, t in tensors.items()}))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_plain_numbers_are_plain_tensors(tmp_path: Path, kind: Kind) -> None:
    drawn = encode(draw(6, 40), kind)
    tensor = opened(tmp_path, x__weight=drawn)["x.weight"]
    assert (tensor.dtype, tensor.shape) == (kind.name, (6, 40))
    np.testing.assert_array_equal(tensor.floats(), dequantized(drawn))
    np.testing.assert_array_equal(tensor.floats(2, 3), dequantized(drawn)[2:5])


@pytest.mark.parametrize("kind", UNPACKED, ids=lambda kind: kind.name)
def test_blocks_are_unpacked_row_by_row(tmp_path: Path, kind: Kind) -> None:
    drawn = draw_blocks(kind, 7, 512)
    checkpoint = opened(tmp_path, x__weight=drawn)
    tensor, numbers = checkpoint["x.weight"], dequantized(drawn)
    assert (tensor.dtype, tensor.stored_as, tensor.shape, tensor.floating) == ("F32", kind.name, (7, 512), True)
    assert tensor.nbytes == drawn[0].nbytes and not checkpoint.packings
    np.testing.assert_array_equal(np.array(tensor.read()), numbers)
    np.testing.assert_array_equal(tensor.floats(3, 2), numbers[3:5])
    np.testing.assert_array_equal(np.array(tensor.gather([6, 0, 6])), numbers[[6, 0, 6]])


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_what_mlx_holds_code_for_code_comes_packed(tmp_path: Path, kind: Kind) -> None:
    drawn = draw_blocks(kind, 9, 512)
    checkpoint = opened(tmp_path, x__weight=drawn)
    packing = checkpoint.packings["x"]
    assert packing == Packing({Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q4_K: 4, Kind.Q8_0: 8}.get(kind, 5), 32)
    assert {name: tensor.shape for name, tensor in checkpoint.items()} == {
        f"x.{part}": shape for part, shape in packing.packed_shapes(9, 512).items()
    }
    parts = [checkpoint[f"x.{part}"] for part in ("weight", "scales", "biases")]

    def numbers(row: int, rows: int) -> np.ndarray:
        weight, scales, biases = (part.read(row, rows) for part in parts)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return np.array(mx.dequantize(weight, scales, biases, group_size=32, bits=packing.bits))

    np.testing.assert_array_equal(numbers(0, 9), dequantized(drawn))
    np.testing.assert_array_equal(numbers(4, 3), dequantized(drawn)[4:7])
    gathered = np.array(parts[0].gather([8, 1]))
    np.testing.assert_array_equal(gathered, np.array(parts[0].read())[[8, 1]])


def test_a_matrix_that_is_no_weight_does_not_come_packed(tmp_path: Path) -> None:
    drawn = draw_blocks(Kind.Q8_0, 3, 64)
    checkpoint = opened(tmp_path, x__table=drawn)
    assert {name: tensor.shape for name, tensor in checkpoint.items()} == {"x.table": (3, 64)}
    np.testing.assert_array_equal(checkpoint["x.table"].floats(), dequantized(drawn))


def test_rows_that_end_within_a_block_are_refused(tmp_path: Path) -> None:
    drawn = draw_blocks(Kind.Q8_0, 1, 64)[0].reshape(-1), Kind.Q8_0
    with pytest.raises(
        CheckpointError, match=r"'x.bias' \(Q8_0\) has rows of 1 numbers, which are no whole blocks of 32"
    ):
        opened(tmp_path, x__bias=drawn)


def test_a_shape_that_a_converter_changed_is_restored(tmp_path: Path) -> None:
    key = "comfy.gguf.orig_shape.x.weight"
    path = write_gguf(tmp_path / "a.gguf", {"x.weight": encode(draw(4, 256), Kind.F16)}, **{key: [16, 4, 4, 4]})
    assert open_checkpoint(path)["x.weight"].shape == (16, 4, 4, 4)


def test_a_scale_that_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    blocks, kind = draw_blocks(Kind.Q8_0, 2, 64)
    blocks[1, 0:2] = np.array([600], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match=r"'x.weight' \(Q8_0\) has a scale that is not finite, or too large"):
        opened(tmp_path, x__weight=(blocks, kind))["x.biases"].read()


# The header of a small file, number by number.


def header(kind: int = 1, offset: int = 0, keys: int = 3) -> Header:
    out = Header()
    out.raw += b"GGUF"
    out.number("I", 3).number("Q", 2).number("Q", keys)
    out.text("general.architecture").number("I", 8).text("flux")
    out.text("general.alignment").number("I", 4).number("I", 32)
    out.text("tokens").number("I", 9).number("I", 8).number("Q", 2).text("a").text("word")
    out.text("a.weight").number("I", 2).number("Q", 64).number("Q", 3).number("I", 8).number("Q", 0)
    out.text("b.weight").number("I", 2).number("Q", 16).number("Q", 2).number("I", kind).number("Q", 224 + offset)
    return out


def data() -> bytes:
    return bytes(204 + 20 + 64)  # 3 rows of two Q8_0 blocks, padded, and 2 x 16 halves


def expected(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, tensor.stored_as, tensor.shape) for name, tensor in open_checkpoint(path).items()]


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_the_header_of_these_tests_is_sound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", header().padded() + data())
    assert expected(path) == [
        ("a.weight", "Q8_0", (3, 16)),
        ("a.scales", "Q8_0", (3, 2)),
        ("a.biases", "Q8_0", (3, 2)),
        ("b.weight", "F16", (2, 16)),
    ]
    assert [(tensor.name, tuple(map(int, tensor.shape))) for tensor in gguf.GGUFReader(path).tensors] == [
        ("a.weight", (64, 3)), ("b.weight", (16, 2))
    ]  # fmt: skip


HOSTILE = (0, 1, 7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 33, 2**64 - 1)


def mutated(count: int) -> Iterator[bytes]:
    """Sound headers with one number replaced, a byte changed or the end cut off; always the same."""
    dice, sound = np.random.default_rng(5), header()
    raw = sound.padded() + data()
    for index in range(count):
        out = bytearray(raw)
        if index % 3 == 0:
            yield bytes(out[: dice.integers(0, len(raw))])
        elif index % 3 == 1:
            place, form = sound.numbers[dice.integers(len(sound.numbers))]
            value = HOSTILE[dice.integers(len(HOSTILE))] % 2 ** (8 * struct.calcsize(form))
            out[place : place + struct.calcsize(form)] = struct.pack(f"<{form}", value)
            yield bytes(out)
        else:
            place, form = sound.numbers[dice.integers(len(sound.numbers))]
            out[place + dice.integers(struct.calcsize(form))] ^= 1 << dice.integers(8)
            yield bytes(out)


def test_3000_damaged_headers_give_one_line_each(tmp_path: Path) -> None:
    """Or a file with the same tensors, where the damage is in what nobody reads; never another error, nor a wait."""
    path = tmp_path / "a.gguf"
    sound = expected(write(path, header().padded() + data()))
    began, refused = time.perf_counter(), 0
    with path.open("r+b", buffering=0) as file:
        for raw in mutated(3000):
            file.seek(0)
            file.truncate(file.write(raw))
            try:
                found = expected(path)
            except CheckpointError as error:
                assert "\n" not in str(error) and str(path) in str(error)
                refused += 1
            else:
                assert found == sound, raw  # in name, type and shape
    assert refused == 2988
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (16, r"'b.weight' is in IQ2_XXS, which this library does not unpack; take a file of another type \(Q4_0"),
        (40, r"'b.weight' is in NVFP4, which this library does not unpack"),
        (5, r"'b.weight' has type 5, which this library does not know"),
    ],
)
def test_a_type_that_is_not_read_is_named(tmp_path: Path, kind: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(tmp_path / "a.gguf", header(kind).padded() + data()))


def test_offsets_that_leave_a_gap_or_overlap_are_refused(tmp_path: Path) -> None:
    for offset, word in ((32, "leaves a gap before it"), (-32, "overlaps the tensor before it")):
        with pytest.raises(CheckpointError, match=f"'b.weight' {word}"):
            open_checkpoint(write(tmp_path / "a.gguf", header(offset=offset).padded() + data()))


def test_other_versions_and_byte_orders_are_named(tmp_path: Path) -> None:
    raw = header().padded() + data()
    for version, message in ((1, "its version is 1;"), (3 << 24, "its numbers are big-endian;")):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(write(tmp_path / "a.gguf", raw[:4] + struct.pack("<I", version) + raw[8:]))


def test_a_part_of_a_split_file_is_refused_with_the_way_to_join_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"x.weight": encode(draw(4, 32), Kind.F16)}, **{"split.count": 3})
    with pytest.raises(
        CheckpointError, match=r"is one of 3 files of a split GGUF; join them with .*gguf-split --merge"
    ):
        open_checkpoint(path)


def test_arrays_in_arrays_end_somewhere(tmp_path: Path) -> None:
    out = Header()
    out.raw += b"GGUF"
    out.number("I", 3).number("Q", 0).number("Q", 1).text("deep").number("I", 9)
    for _ in range(2000):
        out.number("I", 9).number("Q", 1)
    with pytest.raises(CheckpointError, match="'deep' holds arrays in arrays, more than 2 deep"):
        open_checkpoint(write(tmp_path / "a.gguf", out.padded()))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    raw = header().padded().replace(b"b.weight", b"a.scales") + data()
    with pytest.raises(CheckpointError, match="it has two tensors 'a.scales'"):
        open_checkpoint(write(tmp_path / "a.gguf", raw))
