"""GGUF's block formats -> numbers: a row of a weight is a run of blocks, each with codes and scales of its own.

In: blocks as bytes, [n, nbytes]. Out: `Codes`, whose numbers are those of the reference implementation (the `gguf`
package) bit for bit in float32. Groups of 32 codes with one scale each are also MLX's affine packing, code for code.
Must not know: files, tensors' names.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..layers.linear import Packing
from ..packing.affine import pack_codes

GROUP = 32  # codes that share a scale in the formats that MLX's packing can hold
# What a code of IQ4_NL and IQ4_XS means, moved by 128 so that none is negative.
IQ4_VALUES = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)


@dataclass(frozen=True)
class Codes:
    """number = scale * (code - zero) + low"""

    codes: np.ndarray  # [n, groups, size], uint8
    scale: np.ndarray  # [n, groups], float32
    zero: int = 0
    low: np.ndarray | None = None  # [n, groups], float32

    def floats(self) -> np.ndarray:
        """[n, elements]"""
        out = self.codes.astype(np.float32)
        if self.zero:
            out -= np.float32(self.zero)
        out *= self.scale[..., None]
        if self.low is not None:
            out += self.low[..., None]
        return out.reshape(len(out), -1)

    @property
    def bias(self) -> np.ndarray:
        """What MLX's packing adds to scale * code: [n, groups]"""
        return self.low if self.low is not None else self.scale * np.float32(-self.zero)


@dataclass(frozen=True)
class BlockFormat:
    name: str
    elements: int  # numbers in a block
    nbytes: int
    decode: Callable[[np.ndarray], Codes]  # blocks [n, nbytes]
    bits: int | None = None  # of the MLX packing that holds the same numbers, where there is one
    # The narrowest type that holds scale and bias without rounding: a scale of the file's own is a half, a product of
    # two is not.
    scale_dtype: str = "F16"

    @property
    def packing(self) -> Packing | None:
        return Packing(self.bits, GROUP) if self.bits else None


def packed_part(decoded: Codes, part: str, form: BlockFormat) -> np.ndarray:
    """[n, …] of MLX's affine packing: `weight` in uint32, `scales` or `biases` in float32."""
    if part != "weight":
        return decoded.scale if part == "scales" else decoded.bias
    assert form.bits is not None  # only such formats are asked
    codes = decoded.codes.reshape(len(decoded.codes), -1)
    if form.bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    if form.bits in (4, 8):  # whole bytes, in the order of the words
        return np.ascontiguousarray(codes).view(np.uint32)
    groups = codes.reshape(-1, GROUP).T.astype(np.float32)
    return pack_codes(groups, form.bits).T.reshape(len(codes), -1)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of every block: [n, 1] in float32."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """[n, b] -> [n, 2 b]: the low halves of all bytes, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _pairs(raw: np.ndarray, run: int) -> np.ndarray:
    """[n, b] -> [n, 4 b]: of every `run` bytes the lowest two bits, then the next two …"""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((raw.reshape(len(raw), -1, 1, run) >> shifts) & 3).reshape(len(raw), -1)


def _bits(raw: np.ndarray) -> np.ndarray:
    """[n, b] -> [n, 8, b]: bit i of every byte."""
    return (raw[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1


def _q4_0(blocks: np.ndarray) -> Codes:
    return Codes(_nibbles(blocks[:, 2:18])[:, None], _half(blocks, 0), 8)


def _q4_1(blocks: np.ndarray) -> Codes:
    return Codes(_nibbles(blocks[:, 4:20])[:, None], _half(blocks, 0), low=_half(blocks, 2))


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.unpackbits(blocks[:, at : at + 4].copy(), axis=1, bitorder="little") << 4


def _q5_0(blocks: np.ndarray) -> Codes:
    return Codes((_nibbles(blocks[:, 6:22]) | _fifth_bits(blocks, 2))[:, None], _half(blocks, 0), 16)


def _q5_1(blocks: np.ndarray) -> Codes:
    return Codes((_nibbles(blocks[:, 8:24]) | _fifth_bits(blocks, 4))[:, None], _half(blocks, 0), low=_half(blocks, 2))


def _q8_0(blocks: np.ndarray) -> Codes:
    return Codes((blocks[:, 2:34] ^ 0x80)[:, None], _half(blocks, 0), 128)


def _q2_k(blocks: np.ndarray) -> Codes:
    scales, codes = blocks[:, :16], _pairs(blocks[:, 16:80], 32).reshape(-1, 16, 16)
    low = -(_half(blocks, 82) * (scales >> 4).astype(np.float32))
    return Codes(codes, _half(blocks, 80) * (scales & 15).astype(np.float32), low=low)


def _q3_k(blocks: np.ndarray) -> Codes:
    high = _bits(blocks[:, :32]).reshape(-1, 16, 16)  # bit g of byte k belongs to element 32 g + k
    codes = _pairs(blocks[:, 32:96], 32).reshape(-1, 16, 16) | high << 2
    packed = blocks[:, 96:108]
    scales = _nibbles(packed[:, :8]) | _pairs(packed[:, 8:], 4) << 4
    return Codes(codes, _half(blocks, 108) * (scales.astype(np.float32) - 32), 4)


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, 12] -> eight scales and eight minima of 6 bits: [n, 8] each, in float32"""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_codes(raw: np.ndarray) -> np.ndarray:
    """[n, 128] -> [n, 8, 32]: the low halves of 32 bytes are a group, the high ones the next."""
    return np.stack([raw.reshape(-1, 4, 32) & 15, raw.reshape(-1, 4, 32) >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: np.ndarray) -> Codes:
    scales, minima = _k_scales(blocks[:, 4:16])
    return Codes(_k_codes(blocks[:, 16:144]), _half(blocks, 0) * scales, low=-(_half(blocks, 2) * minima))


def _q5_k(blocks: np.ndarray) -> Codes:
    scales, minima = _k_scales(blocks[:, 4:16])
    codes = _k_codes(blocks[:, 48:176]) | _bits(blocks[:, 16:48]) << 4
    return Codes(codes, _half(blocks, 0) * scales, low=-(_half(blocks, 2) * minima))


def _q6_k(blocks: np.ndarray) -> Codes:
    low, high = blocks[:, :128].reshape(-1, 2, 64), _pairs(blocks[:, 128:192], 32).reshape(-1, 2, 128)
    codes = np.concatenate([low & 15, low >> 4], axis=2) | high << 4
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    return Codes(codes.reshape(-1, 16, 16), _half(blocks, 208) * scales, 32)


def _iq4_nl(blocks: np.ndarray) -> Codes:
    return Codes(IQ4_VALUES[_nibbles(blocks[:, 2:18])][:, None], _half(blocks, 0), 128)


def _iq4_xs(blocks: np.ndarray) -> Codes:
    raw = blocks[:, 8:136].reshape(-1, 8, 16)
    codes = np.concatenate([raw & 15, raw >> 4], axis=2)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = low | _pairs(blocks[:, 2:4], 1) << 4
    return Codes(IQ4_VALUES[codes], _half(blocks, 0) * (scales.astype(np.float32) - 32), 128)


# By the number that a GGUF header gives.
BLOCK_FORMATS = {
    2: BlockFormat("Q4_0", 32, 18, _q4_0, bits=4),
    3: BlockFormat("Q4_1", 32, 20, _q4_1, bits=4),
    6: BlockFormat("Q5_0", 32, 22, _q5_0, bits=5),
    7: BlockFormat("Q5_1", 32, 24, _q5_1, bits=5),
    8: BlockFormat("Q8_0", 32, 34, _q8_0, bits=8),
    10: BlockFormat("Q2_K", 256, 84, _q2_k),
    11: BlockFormat("Q3_K", 256, 110, _q3_k),
    12: BlockFormat("Q4_K", 256, 144, _q4_k, bits=4, scale_dtype="F32"),
    13: BlockFormat("Q5_K", 256, 176, _q5_k, bits=5, scale_dtype="F32"),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
    20: BlockFormat("IQ4_NL", 32, 18, _iq4_nl),
    23: BlockFormat("IQ4_XS", 256, 136, _iq4_xs),
}
