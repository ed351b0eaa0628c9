"""Tensors made of stored ones: the same rows as of all their numbers put together or in order."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.derived import InterleavedTensor, JoinedTensor
from mlx_imagegen.loading.tensor import Tensor
from tests.gguf_files import dequantized, draw_blocks, write_gguf

HEAD, HEADS, COLUMNS = 8, 3, 64


def pieces(folder: Path, *shapes: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> list[Tensor]:
    arrays = {f"{n}": mx.random.normal(shape, key=mx.random.key(n)) for n, shape in enumerate(shapes)}
    arrays["0"] = arrays["0"].astype(dtype)
    mx.save_safetensors(str(folder / "a.safetensors"), arrays)
    checkpoint = open_checkpoint(folder)
    return [checkpoint[name] for name in arrays]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_rows_follow_rows(tmp_path: Path, dtype: mx.Dtype) -> None:
    parts = pieces(tmp_path, (2, 3), (1, 3), (3, 3), dtype=dtype)
    joined, whole = JoinedTensor.of("x", parts, 0), np.concatenate([part.floats() for part in parts])
    assert joined.shape == (6, 3) and joined.dtype == "F32"
    np.testing.assert_array_equal(joined.bytes(), whole)
    for row in range(6):
        for rows in range(1, 7 - row):
            np.testing.assert_array_equal(joined.bytes(row, rows), whole[row : row + rows])


def test_a_new_axis(tmp_path: Path) -> None:
    parts = pieces(tmp_path, (4, 3, 2, 2), (4, 3, 2, 2))
    joined, whole = JoinedTensor.of("x", parts, 2), np.stack([part.floats() for part in parts], 2)
    assert joined.shape == (4, 3, 2, 2, 2)
    np.testing.assert_array_equal(joined.bytes(1, 2), whole[1:3])


@pytest.mark.parametrize(("shapes", "axis"), [(((2, 3), (2, 4)), 0), (((2, 3, 1), (3, 3, 1)), 2)])
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, shapes: tuple[tuple[int, ...], ...], axis: int) -> None:
    with pytest.raises(CheckpointError, match="the tensors for 'x' have shapes .*, which make none"):
        JoinedTensor.of("x", pieces(tmp_path, *shapes), axis)


def test_interleaved_rows_are_put_one_half_after_the_other(tmp_path: Path) -> None:
    """llama.cpp's order undone, whichever rows are read; codes and scales go with their rows."""
    drawn, kind = draw_blocks(Kind.Q4_0, HEAD * HEADS, COLUMNS)
    turned = drawn.reshape(HEADS, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(drawn.shape)  # as its converter does
    file = open_checkpoint(write_gguf(tmp_path / "a.gguf", {"x.weight": (np.ascontiguousarray(turned), kind)}))
    numbers = dequantized((drawn, kind)).reshape(HEAD * HEADS, -1, 32)
    parts = {part: InterleavedTensor.of(file[f"x.{part}"], HEAD) for part in ("weight", "scales", "biases")}
    for first, count in ((0, HEAD * HEADS), (0, 3), (5, 7), (HEAD, HEAD), (23, 1)):
        codes = parts["weight"].bytes(first, count)
        values = (codes[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(count, -1, 32)
        scales, biases = (parts[part].floats(first, count)[..., None] for part in ("scales", "biases"))
        np.testing.assert_allclose(values * scales + biases, numbers[first : first + count], atol=1e-7)
    with pytest.raises(ValueError, match="24 rows in heads of 16"):
        InterleavedTensor.of(file["x.weight"], 16)
