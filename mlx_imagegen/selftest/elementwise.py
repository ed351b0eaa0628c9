"""Norms, rotary positions and activations, for which a GPU has fused kernels."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from ..layers import activation, fused, products
from ..layers.attention import split_heads
from ..layers.conv import GroupNorm
from ..layers.modulation import modulate
from ..layers.norm import LayerNorm, RMSNorm
from ..layers.parts import Part, gated_sum_of_parts, modulate_parts
from ..layers.rope import rope_table, rotate
from ..layers.stacked import HeadNorms
from ..layers.strips import Cut, Strips
from ..precision import FLOAT16_DIVISOR, dtype_name
from ..text.qwen import rotate_halves
from .check import Check, as_numpy, compared, drawn, dtypes, real

NORM, ROPE, ACTIVATION, SUM = "norm", "rotary positions", "activation", "residual sum"
LIMITS = {mx.bfloat16: 5e-3, mx.float16: 1e-3, mx.float32: 1e-5}
EPS = 1e-6
HEAD, AXES, THETA = 128, (16, 56, 56), 10_000.0  # FLUX.1's


def elementwise_checks() -> Iterator[Check]:
    tokens = real(4608, 129)
    for dtype in dtypes():
        yield from norm_checks(dtype, tokens, real(3072, 384))
        yield from rope_checks(dtype, tokens)
        yield heads_check(dtype, tokens, real(24, 2))
        yield from activation_checks(dtype, real(512, 129), real(3072, 512))
        yield from sum_checks(dtype, real(512, 129), real(3072, 512))
        yield from part_checks(dtype, real(4608, 129), real(3072, 384))
    yield group_norm_check(real(128, 12), real(512, 64))


def norm_checks(dtype: mx.Dtype, tokens: int, width: int) -> Iterator[Check]:
    x, numbers = drawn(dtype, 1, tokens, width)
    scale, gain = drawn(dtype, width, part=3)
    shift, offset = drawn(dtype, width, part=5)
    case = f"{dtype_name(dtype)}, [{tokens}, {width}]"
    centred = numbers - numbers.mean(axis=-1, keepdims=True, dtype=np.float64)
    unit = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + EPS)

    rms, layer = RMSNorm(width, EPS), LayerNorm(width, EPS)
    rms.weight, layer.weight, layer.bias = scale, scale, shift
    yield compared(NORM, f"RMS, {case}", rms(x), _unit_rms(numbers) * gain, LIMITS[dtype])
    yield compared(NORM, f"layer, {case}", layer(x), unit * gain + offset, LIMITS[dtype])
    factor = 1 + scale
    out = modulate(x, shift, factor, EPS)
    yield compared(NORM, f"layer modulated, {case}", out, unit * as_numpy(factor) + offset, LIMITS[dtype])

    heads = width // HEAD  # of queries and keys, which lie apart in memory
    rms.weight, gain = drawn(dtype, HEAD, part=7)
    split = numbers.reshape(1, tokens, heads, HEAD).transpose(0, 2, 1, 3)
    case = f"RMS of heads, {dtype_name(dtype)}, [{heads}, {tokens}, {HEAD}]"
    yield compared(NORM, case, rms(split_heads(x, heads)), _unit_rms(split) * gain, LIMITS[dtype])


def _unit_rms(numbers: np.ndarray) -> np.ndarray:
    return np.asarray(numbers / np.sqrt(np.mean(numbers.astype(np.float64) ** 2, axis=-1, keepdims=True) + EPS))


def group_norm_check(side: int, channels: int, groups: int = 32) -> Check:
    x, numbers = drawn(mx.float32, 1, side, side, channels)
    norm = GroupNorm(channels, groups, EPS)
    norm.weight, gain = drawn(mx.float32, channels, part=3)
    norm.bias, offset = drawn(mx.float32, channels, part=5)
    split = numbers.reshape(1, side * side, groups, -1).astype(np.float64)
    mean, variance = (of(split, axis=(1, 3), keepdims=True) for of in (np.mean, np.var))
    expected = ((split - mean) / np.sqrt(variance + EPS)).reshape(numbers.shape) * gain + offset
    strips = Strips(Cut(5), [x[:, start : start + 5] for start in range(0, side, 5)])
    out = norm(strips)(x)
    return compared(NORM, f"group, float32, [{side}, {side}, {channels}] in strips", out, expected, LIMITS[mx.float32])


def rope_checks(dtype: mx.Dtype, tokens: int) -> Iterator[Check]:
    x, numbers = drawn(dtype, 1, 2, tokens, HEAD)
    positions = np.stack([np.zeros(tokens, np.int64), np.arange(tokens) // 64, np.arange(tokens) % 64], axis=1)
    case = f"{dtype_name(dtype)}, [2, {tokens}, {HEAD}]"
    angles = [np.outer(positions[:, axis], THETA ** (-np.arange(0, dims, 2) / dims)) for axis, dims in enumerate(AXES)]
    cos, sin = np.cos(np.concatenate(angles, axis=1)), np.sin(np.concatenate(angles, axis=1))  # [L, D/2]

    first, second = numbers[..., 0::2], numbers[..., 1::2]
    expected = np.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(numbers.shape)
    yield compared(ROPE, f"pairs, {case}", rotate(x, rope_table(positions, AXES, THETA)), expected, LIMITS[dtype])

    first, second = numbers[..., : HEAD // 2], numbers[..., HEAD // 2 :]
    expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    table = mx.array(cos, mx.float32), mx.array(sin, mx.float32)
    yield compared(ROPE, f"halves, {case}", rotate_halves(x, table), expected, LIMITS[dtype])


def heads_check(dtype: mx.Dtype, tokens: int, count: int) -> Check:
    """Norm and rope of queries and keys that come of one product."""
    y, numbers = drawn(dtype, 1, tokens, 2 * count * HEAD)
    norm_q, norm_k = RMSNorm(HEAD, EPS), RMSNorm(HEAD, EPS)
    norm_q.weight, gain_q = drawn(dtype, HEAD, part=3)
    norm_k.weight, gain_k = drawn(dtype, HEAD, part=5)
    rope = rope_table(np.arange(tokens)[:, None], (HEAD,), THETA)
    split = _unit_rms(numbers.reshape(1, tokens, 2 * count, HEAD)) * np.stack(count * [gain_q] + count * [gain_k])
    pairs = split.transpose(0, 2, 1, 3).reshape(1, 2 * count, tokens, -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.array(rope).astype(np.complex128)
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(1, 2 * count, tokens, HEAD)
    q, k, _ = HeadNorms(norm_q, norm_k, count, EPS).turned(y, rope)
    case = f"pairs of normed heads, {dtype_name(dtype)}, [{2 * count}, {tokens}, {HEAD}]"
    return compared(ROPE, case, mx.concatenate([q, k], axis=1), expected, 2 * LIMITS[dtype])


def activation_checks(dtype: mx.Dtype, tokens: int, width: int) -> Iterator[Check]:
    """On a GPU each is a compiled function."""
    x, numbers = drawn(dtype, tokens, width)
    y, others = drawn(dtype, tokens, width, part=3)
    case = f"{dtype_name(dtype)}, [{tokens}, {width}]"
    for name, expected in ACTIVATIONS.items():
        out = getattr(activation, name)(x)
        yield compared(ACTIVATION, f"{name}, {case}", out, expected(numbers.astype(np.float64)), LIMITS[dtype])
    gates = 1 / (1 + np.exp(-numbers.astype(np.float64)))
    yield compared(ACTIVATION, f"sigmoid, {case}", mx.sigmoid(x), gates, LIMITS[dtype])
    out = activation.swiglu(x, y)
    # The product of two rounded numbers is rounded once more.
    yield compared(ACTIVATION, f"swiglu, {case}", out, _silu(numbers) * others, 2 * LIMITS[dtype])
    halves = mx.split(mx.concatenate([x, y], axis=-1), 2, axis=-1)  # of one product, not copied
    out = activation.swiglu(*halves)
    yield compared(ACTIVATION, f"swiglu of halves, {case}", out, _silu(numbers) * others, 2 * LIMITS[dtype])


def sum_checks(dtype: mx.Dtype, tokens: int, width: int) -> Iterator[Check]:
    """What is added to the residual stream, and the biases of packed products on their way."""
    (x, before), (y, added) = drawn(dtype, tokens, width), drawn(dtype, tokens, width, part=3)
    (gate, factor), (bias, offset) = drawn(dtype, width, part=5), drawn(dtype, width, part=7)
    case = f"{dtype_name(dtype)}, [{tokens}, {width}]"
    limit = 2 * LIMITS[dtype]  # each sum and product is rounded
    gated, biased = products.Product(y), products.Product(y, bias)
    yield compared(SUM, f"gated, {case}", products.gated_sum_of(x, gate, gated), before + factor * added, limit)
    expected = before + factor * (added + offset)
    yield compared(SUM, f"gated with bias, {case}", products.gated_sum_of(x, gate, biased), expected, limit)
    wide, numbers = drawn(mx.float32, tokens, width, part=9)
    yield compared(SUM, f"residual, {case}", fused.residual_sum(wide, y), numbers + added, limit)
    expected = ACTIVATIONS["gelu_tanh"]((added + offset).astype(np.float64))
    yield compared(ACTIVATION, f"gelu_tanh with bias, {case}", products.gelu_tanh_of(biased), expected, limit)
    part = products.divided_gelu_tanh_of(biased)
    yield compared(ACTIVATION, f"divided gelu_tanh, {case}", part, expected / FLOAT16_DIVISOR, limit)
    divided, expected = products.Product(y, bias, divided=True), numbers + factor * (FLOAT16_DIVISOR * added + offset)
    yield compared(SUM, f"gated and divided, {case}", products.gated_sum_of(wide, gate, divided), expected, limit)


def part_checks(dtype: mx.Dtype, tokens: int, width: int) -> Iterator[Check]:
    """Text and picture in one sequence, each with vectors of its own."""
    (x, before), (y, added) = drawn(dtype, 1, tokens, width), drawn(dtype, 1, tokens, width, part=5)
    vectors = [drawn(dtype, 3, width, part=part) for part in (3, 7)]
    lengths = tokens // 9, tokens - tokens // 9
    parts = [Part(length, rows) for length, (rows, _) in zip(lengths, vectors, strict=True)]
    shift, scale, gate = np.concatenate(
        [np.repeat(numbers[:, None], length, axis=1) for length, (_, numbers) in zip(lengths, vectors, strict=True)],
        axis=1,
    )
    case = f"by part, {dtype_name(dtype)}, [{tokens}, {width}]"
    centred = before - before.mean(axis=-1, keepdims=True, dtype=np.float64)
    unit = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + EPS)
    out = modulate_parts(x, parts, 0, EPS)
    yield compared(NORM, f"layer modulated {case}", out, unit * scale + shift, 2 * LIMITS[dtype])
    out = gated_sum_of_parts(x, parts, 2, products.Product(y), x)
    yield compared(SUM, f"gated {case}", out, before + gate * (added + before), 2 * LIMITS[dtype])


def _silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-x)))


def _erf(x: np.ndarray) -> np.ndarray:
    """By its series, for the values of a unit normal, in float64."""
    term = total = x
    for n in range(1, 70):
        term = term * (-x * x / n)
        total = total + term / (2 * n + 1)
    return np.asarray(2 / np.sqrt(np.pi) * total)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x / 2 * (1 + _erf(x / np.sqrt(2))),
    "silu": _silu,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}
