"""Blocks of the published models' widths against torch, in bfloat16 and float32: on a GPU by its fast kernels."""

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from mlx_imagegen.families.flux1.transformer import DoubleBlock, SingleBlock
from mlx_imagegen.families.qwen_image.transformer import Block
from mlx_imagegen.layers.conv import GroupNorm, ResidualBlock
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.modulation import with_ones
from mlx_imagegen.layers.parts import Part
from mlx_imagegen.layers.products import Product
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.layers.strips import Cut, Strips
from mlx_imagegen.text.qwen import DecoderLayer, QwenConfig
from mlx_imagegen.text.t5 import T5Config, T5Encoder
from tests import real_widths as drawn
from tests.real_widths import FLUX_AXES, FLUX_HEADS, FLUX_THETA, FLUX_WIDTH, SIZES, Size

TRUTH: Mapping[str, np.ndarray] = load_file(drawn.TRUTH)
HAS_GPU = mx.is_available(mx.gpu)
# The worst token's error, as a part of a token's usual size. TF32 would be off by 3e-4 in each product.
LIMITS = {mx.float32: 1e-4, mx.bfloat16: 0.03}  # in this order: bfloat16 holds each drawn number exactly
FLUX: Any = SimpleNamespace(inner_dim=FLUX_WIDTH, num_attention_heads=FLUX_HEADS)
# HiDream-O1's language model, and FLUX.1's second encoder.
DECODER = QwenConfig(model_type="qwen3_vl_text", num_hidden_layers=1, vocab_size=8, **drawn.DECODER)  # type: ignore[arg-type]
T5 = T5Config(vocab_size=8, feed_forward_proj="gated-gelu", **drawn.T5)  # type: ignore[arg-type]
Outputs = dict[str, mx.array]


@pytest.fixture(params=["cpu", "gpu"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Few tokens on the CPU; many on a GPU, whose kernels are others then."""
    if request.param == "cpu":
        # The CPU backend's bfloat16 products are 30 times slower than float32's, which round the same at the end.
        monkeypatch.setattr(Linear, "product_of_parts", in_float32)
        yield "few"
        return
    if not HAS_GPU:
        pytest.skip("there is no GPU")
    mx.set_default_device(mx.gpu)
    yield "many"
    mx.set_default_device(mx.cpu)


def in_float32(layer: Linear, *parts: mx.array) -> Product:
    x = mx.concatenate(list(parts), axis=-1)
    out = x.astype(mx.float32) @ layer.weight.astype(mx.float32).T
    return Product((out + layer.bias if "bias" in layer else out).astype(x.dtype))


def filled(block: nn.Module) -> nn.Module:
    """With the drawn weights, in float32; convolutions' in torch's layout first."""
    for name, value in tree_flatten(block.parameters()):
        shape = tuple(value.shape)
        if len(shape) == 4:
            out, rows, columns, inputs = shape
            numbers = drawn.weight(name, (out, inputs, rows, columns)).transpose(0, 2, 3, 1)
        else:
            numbers = drawn.weight(name, shape)
        *path, leaf = name.split(".")
        place: Any = block
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        place[leaf] = mx.array(numbers)
        mx.eval(place[leaf])  # one matrix at a time in NumPy
    return block


def array(numbers: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(numbers).astype(dtype)


def modulation(name: str, rows: int, dtype: mx.Dtype) -> mx.array:
    """Shift, scale with its 1, and gate, once or twice."""
    return with_ones(array(drawn.modulation(name, rows), dtype), *range(1, rows, 3))


def streams(size: Size, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    shapes = {"img": size.image, "txt": size.text}
    img, txt = (array(drawn.tokens(name, 1, count, FLUX_WIDTH), dtype) for name, count in shapes.items())
    return img, txt


def flux_rope(size: Size) -> mx.array:
    return rope_table(drawn.positions(size), FLUX_AXES, FLUX_THETA)


def flux_double(block: DoubleBlock, size: Size, dtype: mx.Dtype) -> Outputs:
    rows = (modulation(name, 6, dtype) for name in ("img", "txt"))
    img, txt = block(*streams(size, dtype), flux_rope(size), *rows)
    return {"flux_double.img": img, "flux_double.txt": txt}


def flux_single(block: SingleBlock, size: Size, dtype: mx.Dtype) -> Outputs:
    img, txt = streams(size, dtype)
    x = mx.concatenate([txt, img], axis=1)
    return {"flux_single": block(x, flux_rope(size), modulation("single", 3, dtype))}


def qwen_image(block: Block, size: Size, dtype: mx.Dtype) -> Outputs:
    img, txt = streams(size, dtype)
    img_mod, txt_mod = (modulation(name, 6, dtype) for name in ("img", "txt"))
    parts = [Part(img.shape[1], img_mod)], [Part(txt.shape[1], txt_mod)]
    img, txt = block(img, txt, flux_rope(size), *parts)
    return {"qwen_image.img": img, "qwen_image.txt": txt}


def decoder(layer: DecoderLayer, size: Size, dtype: mx.Dtype) -> Outputs:
    """HiDream-O1's: the residual stream is float32 whatever the weights are."""
    x = array(drawn.tokens("decoder", 1, size.decoder, DECODER.hidden_size), mx.float32)
    exponents = np.arange(0, DECODER.head_size, 2) / DECODER.head_size
    angles = np.outer(np.arange(size.decoder), DECODER.rope_theta**-exponents)
    rope = mx.array(np.cos(angles), mx.float32), mx.array(np.sin(angles), mx.float32)
    return {"decoder": layer(x, rope, None, None)[0]}


def t5(model: T5Encoder, size: Size, dtype: mx.Dtype) -> Outputs:
    return {"t5": model(array(drawn.tokens("t5", 1, size.t5, T5.d_model), dtype))}


def group_norm(dims: int) -> GroupNorm:
    return GroupNorm(dims, drawn.GROUPS, 1e-6)


def error(size: str, name: str, out: mx.array) -> float:
    expected = TRUTH[f"{size}.{name}"]
    difference = np.linalg.norm(drawn.projected(np.array(out.astype(mx.float32))) - expected, axis=1)
    return float(difference.max() / np.sqrt(np.mean(np.sum(expected**2, axis=1))))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Outputs]]] = {
    "flux_double": (lambda: DoubleBlock(FLUX), flux_double),
    "flux_single": (lambda: SingleBlock(FLUX), flux_single),
    "qwen_image": (lambda: Block(FLUX), qwen_image),
    "decoder": (lambda: DecoderLayer(DECODER), decoder),
    "t5": (lambda: T5Encoder(T5), t5),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_real_width_is_torch_s(name: str, size: str) -> None:
    make, run = BLOCKS[name]
    block = filled(make())
    for dtype, limit in LIMITS.items():
        block.set_dtype(dtype)
        for part, out in run(block, SIZES[size], dtype).items():
            assert error(size, part, out) <= limit, (part, dtype)


def test_a_wide_convolution_in_strips_is_torch_s(size: str) -> None:
    """The autoencoders are float32 on every device; on a GPU this is Winograd's."""
    pixels = SIZES[size].pixels
    block = filled(ResidualBlock(group_norm, drawn.CHANNELS, drawn.CHANNELS))
    x = array(drawn.tokens("pixels", 1, pixels, pixels, drawn.CHANNELS), mx.float32)
    out = block(Strips(Cut(5), [x])).joined()
    assert error(size, "convolution", out) <= (1e-3 if size == "many" else LIMITS[mx.float32])
