"""Rows of tensors in other files, in another order than they are stored in."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.parts import InterleavedTensor
from tests.gguf_files import dequantized, draw_blocks, write_gguf

HEAD, HEADS, COLUMNS = 8, 3, 64


def test_interleaved_rows_are_put_one_half_after_the_other(tmp_path: Path) -> None:
    """llama.cpp's order undone, whichever rows are read; codes and scales go with their rows."""
    drawn, kind = draw_blocks(Kind.Q4_0, HEAD * HEADS, COLUMNS)
    turned = drawn.reshape(HEADS, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(drawn.shape)  # as its converter does
    file = open_checkpoint(write_gguf(tmp_path / "a.gguf", {"x.weight": (np.ascontiguousarray(turned), kind)}))
    numbers = dequantized((drawn, kind)).reshape(HEAD * HEADS, -1, 32)
    parts = {part: InterleavedTensor.over(file[f"x.{part}"], HEAD) for part in ("weight", "scales", "biases")}
    for first, count in ((0, HEAD * HEADS), (0, 3), (5, 7), (HEAD, HEAD), (23, 1)):
        codes = parts["weight"].bytes(first, count)
        values = (codes[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(count, -1, 32)
        scales, biases = (parts[part].floats(first, count)[..., None] for part in ("scales", "biases"))
        np.testing.assert_allclose(values * scales + biases, numbers[first : first + count], atol=1e-7)
    with pytest.raises(ValueError, match="24 rows in heads of 16"):
        InterleavedTensor.over(file["x.weight"], 16)
