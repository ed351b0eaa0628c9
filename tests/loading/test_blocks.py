"""GGUF's block formats against the `gguf` package, and MLX's own reading of what they become."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_files import dequantized, draw_blocks

from mlx_imagegen.loading.blocks import BLOCK_FORMATS, packed_part

IDS = [form.name for form in BLOCK_FORMATS.values()]


@pytest.mark.parametrize("number", BLOCK_FORMATS, ids=IDS)
def test_numbers_are_those_of_the_gguf_package_bit_for_bit(number: int) -> None:
    kind, form = Kind(number), BLOCK_FORMATS[number]
    assert (form.name, form.elements, form.nbytes) == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
    for seed, size in ((0, 0.02), (1, 1e-6), (2, 300.0)):
        drawn = draw_blocks(kind, 64, 512, seed, size)
        floats = form.decode(drawn[0].reshape(-1, form.nbytes)).floats().reshape(64, 512)
        np.testing.assert_array_equal(floats.view(np.uint32), dequantized(drawn).view(np.uint32))


@pytest.mark.parametrize("number", [number for number, form in BLOCK_FORMATS.items() if form.bits])
def test_what_mlx_holds_code_for_code_is_not_rounded(number: int) -> None:
    form = BLOCK_FORMATS[number]
    drawn = draw_blocks(Kind(number), 48, 512, 3)
    codes = form.decode(drawn[0].reshape(-1, form.nbytes))
    parts = {name: packed_part(codes, name, form).reshape(48, -1) for name in ("weight", "scales", "biases")}
    held = np.float16 if form.scale_dtype == "F16" else np.float32
    for name in ("scales", "biases"):
        np.testing.assert_array_equal(parts[name].astype(held).astype(np.float32), parts[name])
    weight, scales, biases = (mx.array(part) for part in parts.values())
    numbers = np.array(mx.dequantize(weight, scales, biases, group_size=32, bits=form.bits))
    np.testing.assert_array_equal(numbers, dequantized(drawn))
