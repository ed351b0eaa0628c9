"""Attention: every head size in use, equal or fewer key heads, with and without a mask; and the gated delta rule."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..layers.attention import attend
from ..precision import dtype_name
from ..text.gated_delta import gated_delta
from .check import Check, compared, drawn, dtypes, real

ATTENTION, DELTA = "attention", "gated delta rule"
# The scores, and the weights after the softmax, may be rounded to the inputs' dtype.
LIMITS = {mx.bfloat16: 2e-2, mx.float16: 3e-3, mx.float32: 1e-4}
CAUSAL, PADDED, ADDED = "causal", "padding masked", "bias added"


class Case(NamedTuple):
    of: str
    heads: int  # few are enough: each is computed for itself
    key_heads: int
    queries: int
    keys: int
    size: int  # of a head
    mask: str | None = None
    scale: float | None = None  # 1 / sqrt(size) if not given
    dtypes: tuple[mx.Dtype, ...] = ()  # all that a run here may compute in, if not given


def cases() -> list[Case]:
    picture, pixels = real(4608, 193), real(16_384, 320)
    return [
        Case("image and prompt", 2, 2, picture, picture, 128),
        Case("a prompt's queries", 2, 2, real(512, 65), picture, 128),  # FLUX.1's and Qwen-Image's attend apart
        Case("a short prompt's queries", 2, 2, 7, real(4103, 200), 128),  # another kernel's, up to 8
        Case("image and prompts of two lengths", 2, 2, picture, picture, 128, PADDED),
        Case("decoder's patches after the prompt's keys", 4, 1, real(1025, 129), real(1126, 230), 128),
        Case("decoder's prompt", 4, 1, 101, 101, 128, CAUSAL),
        Case("T5", 2, 2, real(512, 65), real(512, 65), 64, ADDED, 1.0),
        Case("CLIP", 2, 2, 77, 77, 64, CAUSAL),
        Case("vision tower", 2, 2, real(1024, 129), real(1024, 129), 80),
        Case("one query", 2, 2, 1, real(1126, 230), 128),
        Case("upsampler's prompt", 4, 1, real(1025, 129), real(1025, 129), 256, CAUSAL),
        Case("upsampler's next token", 4, 1, 1, real(1126, 230), 256),
        Case("FLUX.1's autoencoder", 1, 1, real(128, 33), pixels, 512, dtypes=(mx.float32,)),
        Case("Qwen-Image's autoencoder", 1, 1, real(128, 33), pixels, 384, dtypes=(mx.float32,)),
    ]


def attention_checks() -> Iterator[Check]:
    for case in cases():
        for dtype in case.dtypes or dtypes():
            yield attention_check(case, dtype)
    yield delta_check(real(1025, 129), 128)


def attention_check(case: Case, dtype: mx.Dtype) -> Check:
    q, queries = drawn(dtype, 1, case.heads, case.queries, case.size)
    k, keys = drawn(dtype, 1, case.key_heads, case.keys, case.size, part=3)
    v, values = drawn(dtype, 1, case.key_heads, case.keys, case.size, part=5)
    scale = case.size**-0.5 if case.scale is None else case.scale
    if case.scale is not None:  # T5 divides its weights instead
        q, queries = q * case.size**-0.5, queries * np.float32(case.size**-0.5)
    mask, added = _mask(case, dtype)
    out = attend(q, k, v, scale=case.scale, mask=mask)
    expected = attended(queries, keys, values, scale, added)
    heads = f"{case.heads} heads of {case.size}" + (f" on {case.key_heads}" if case.key_heads < case.heads else "")
    how = f"{case.mask or 'no mask'}, {dtype_name(dtype)}"
    name = f"{case.of}: {heads}, {case.queries} queries, {case.keys} keys, {how}"
    return compared(ATTENTION, name, out, expected, LIMITS[dtype])


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, added: np.ndarray | float) -> np.ndarray:
    """[1, H, L, D] -> [1, L, H D]"""
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
    scores = q @ k.swapaxes(2, 3) * np.float32(scale) + added
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    out: np.ndarray = weights @ v
    return out.transpose(0, 2, 1, 3).reshape(1, q.shape[2], -1)


def _mask(case: Case, dtype: mx.Dtype) -> tuple[mx.array | str | None, np.ndarray | float]:
    """As MLX takes it, and what is added to the scores."""
    if case.mask == CAUSAL:
        return CAUSAL, np.where(np.tri(case.queries, dtype=bool), np.float32(0), np.float32(-np.inf))
    if case.mask == PADDED:  # the second half of the prompt, which comes first
        seen = (np.arange(case.keys) < 40) | (np.arange(case.keys) >= 77)
        return mx.array(seen)[None, None, None], np.where(seen, np.float32(0), np.float32(-np.inf))
    if case.mask == ADDED:
        return drawn(dtype, 1, case.heads, case.queries, case.keys, part=7)
    return None, 0.0


def delta_check(tokens: int, size: int) -> Check:
    """In chunks by MLX, token by token by NumPy; a row is what one token reads."""
    (q, queries), (k, keys), (v, values) = (drawn(mx.float32, 1, 1, tokens, size, part=part) for part in (0, 3, 5))
    norms = np.linalg.norm(keys, axis=-1, keepdims=True)
    decays, shares = -np.abs(values[..., 0]), 1 / (1 + np.exp(queries[..., 0]))
    memory = mx.zeros((1, 1, size, size))
    out, _ = gated_delta(q, k / mx.array(norms), v, mx.array(decays), mx.array(shares), memory)
    held, expected = np.zeros((size, size)), []
    for token in range(tokens):
        query, key, value, decay, share = (x[0, 0, token] for x in (queries, keys / norms, values, decays, shares))
        held *= np.exp(decay)
        held += np.outer(key, (value - key @ held) * share)
        expected.append(query @ held)
    return compared(DELTA, f"float32, [{tokens}, {size}]", out[0, 0], np.stack(expected), LIMITS[mx.float32])
