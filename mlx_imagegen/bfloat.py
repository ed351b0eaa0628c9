"""The short floating-point formats as numpy arrays: bfloat16 carried as uint16, fp8 (e4m3) as uint8.

numpy has neither type, and MLX's arrays belong to the thread that made them, so the converter's threads use these.
Must not know: files, quantization.
"""

import functools

import numpy as np


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16, rounded to nearest even."""
    pattern = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    return from_bf16(to_bf16(x))


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """A stored array, as `Tensor.bytes` gives it, by its dtype's name in safetensors."""
    if dtype == "BF16":
        return from_bf16(raw)
    if dtype == "F8_E5M2":  # the upper byte of a float16
        return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        return np.ldexp(np.where(raw == 255, np.float32(np.nan), np.float32(1)), raw.astype(np.int32) - 127)
    return _fp8_values()[raw] if dtype == "F8_E4M3" else raw.astype(np.float32)


@functools.cache
def _fp8_values() -> np.ndarray:
    """What each byte means: 1 sign, 4 exponent and 3 mantissa bits; no infinity, and one pattern for NaN."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(byte & 127 == 127, np.nan, np.where(byte < 128, size, -size)).astype(np.float32)
