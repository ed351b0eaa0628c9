"""Draws GGUF files: real ones by the `gguf` package's writer, and headers byte by byte for damage."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from mlx_imagegen.loading.blocks import BLOCK_FORMATS

Drawn = tuple[np.ndarray, Kind]  # an array, or rows of blocks in bytes, and their type


def draw_blocks(kind: Kind, rows: int, columns: int, seed: int = 0, size: float = 0.02) -> Drawn:
    """Random blocks: every bit pattern of codes and small scales, halves of about `size` over the codes' range."""
    form, dice = BLOCK_FORMATS[kind], np.random.default_rng(seed)
    blocks = dice.integers(0, 256, (rows * columns // form.elements, form.nbytes), np.uint8)
    for at in HALVES[kind]:
        halves = (size * dice.standard_normal(len(blocks)) / SPAN.get(kind, 8)).astype(np.float16)
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(rows, -1), kind


# Where a block's halves are, and about how far its numbers reach in units of the first.
HALVES: dict[Kind, tuple[int, ...]] = {
    Kind.Q4_0: (0,), Kind.Q4_1: (0, 2), Kind.Q5_0: (0,), Kind.Q5_1: (0, 2), Kind.Q8_0: (0,), Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,), Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip
SPAN = {Kind.Q8_0: 128, Kind.Q4_K: 500, Kind.Q5_K: 1000, Kind.Q3_K: 100, Kind.Q6_K: 2000, Kind.Q2_K: 30}
SPAN |= {Kind.IQ4_NL: 100, Kind.IQ4_XS: 2000}


def dequantized(drawn: Drawn) -> np.ndarray:
    """The `gguf` package's own numbers, in float32."""
    return gguf.quants.dequantize(*drawn)


def encode(array: np.ndarray, kind: Kind) -> Drawn:
    """An array in a type that the package can write."""
    return gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind), kind


def write_gguf(path: Path, tensors: Mapping[str, Drawn], arch: str = "flux", **values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_quantization_version(2)
    writer.add_array("tokenizer.ggml.tokens", [f"word {index}" for index in range(40)])
    for name, value in values.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(name, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Header:
    """A GGUF header put together number by number; remembers where each one is, and what it counts."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.numbers: list[tuple[int, str]] = []  # (place, struct's letter)

    def number(self, form: str, value: int) -> "Header":
        self.numbers.append((len(self.raw), form))
        self.raw += struct.pack(f"<{form}", value)
        return self

    def text(self, text: str) -> "Header":
        self.number("Q", len(text))
        self.raw += text.encode()
        return self

    def padded(self, alignment: int = 32) -> bytes:
        return bytes(self.raw) + b"\0" * (-len(self.raw) % alignment)
