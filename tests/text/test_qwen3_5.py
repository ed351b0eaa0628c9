"""Qwen3.5's language model: what it takes to read a long question. What it writes, tests/upsampling holds."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_imagegen.layers.activation import silu
from mlx_imagegen.text.qwen import mrope
from mlx_imagegen.text.qwen3_5 import HybridModel, ShortConvolution, read_hybrid_config, working_bytes

TEXT = {
    "model_type": "qwen3_5_text", "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": 100, "head_dim": 64,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    "linear_value_head_dim": 64,
    "rope_parameters": {"mrope_section": [3, 3, 2], "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}  # fmt: skip


def test_a_question_takes_no_more_memory_than_is_planned() -> None:
    config, length = read_hybrid_config({"text_config": TEXT}, Path("config.json")), 640
    model = HybridModel(config)
    model.update(tree_map(lambda value: mx.full(value.shape, 0.01), model.parameters()))
    x, rope = mx.full((1, length, 256), 0.5), mrope(np.tile(np.arange(length), (3, 1)), config)
    mx.eval(model.parameters(), x, rope)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    kept = model(x, rope)
    assert 0.3 < (mx.get_peak_memory() - before) / working_bytes(config, length, 0, 4) < 1
    del kept


def test_a_short_convolution_rounds_its_sum_once() -> None:
    draw = np.random.default_rng(1)
    x = mx.array(draw.normal(size=(1, 9, 16))).astype(mx.bfloat16)
    convolution = ShortConvolution(16, 4)
    convolution.weight = mx.array(draw.normal(size=(16, 4))).astype(mx.bfloat16)
    padded = np.pad(np.array(x.astype(mx.float32)), [(0, 0), (3, 0), (0, 0)])
    weight = np.array(convolution.weight.astype(mx.float32))
    whole = sum(padded[:, place : place + 9] * weight[:, place] for place in range(4))
    out, kept = convolution(x, None)
    assert out.dtype == mx.bfloat16 and mx.array_equal(out, silu(mx.array(whole).astype(mx.bfloat16)))
    parts, kept = [], None
    for first, last in ((0, 2), (2, 3), (3, 9)):  # shorter than what is kept
        part, kept = convolution(x[:, first:last], kept)
        parts.append(part)
    assert mx.array_equal(mx.concatenate(parts, axis=1), out)
