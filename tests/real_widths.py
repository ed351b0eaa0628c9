"""Blocks as wide as the published models', with drawn weights: names and sizes, and the same numbers for every reader.

tests/references/real_widths.py computes their outputs by torch; tests/test_real_widths.py compares. The demo models'
heads of 32 and narrow convolutions never reach a GPU's fast kernels; these do. Every number is held exactly by
bfloat16, so that one truth, in float32, is for both dtypes. Must not know: torch, MLX.
"""

import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

TRUTH = Path(__file__).parent / "data" / "real_widths.safetensors"
SEED = 13
DEVIATION = 74.0  # of what an 8-bit integer is drawn from
FLUX_WIDTH, FLUX_HEADS, FLUX_AXES, FLUX_THETA = 3072, 24, (16, 56, 56), 10_000.0
DECODER = {
    "hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5_000_000.0,
}  # fmt: skip
T5 = {
    "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 256, "num_layers": 1, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
CHANNELS, GROUPS = 512, 32
PROJECTIONS = 4


class Size(NamedTuple):
    """How many tokens; `many` as a small picture has, for a GPU."""

    grid: tuple[int, int]  # rows and columns of the image's tokens
    text: int
    decoder: int  # HiDream-O1's, with the timestep's
    t5: int
    pixels: int  # along each side of the convolution's picture

    @property
    def image(self) -> int:
        return self.grid[0] * self.grid[1]


SIZES = {"few": Size((6, 8), 17, 65, 65, 13), "many": Size((32, 32), 77, 1025, 512, 64)}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32; of a layer's inputs' spread, or about 1 in a norm."""
    if "norm" in name and len(shape) == 1 and name.endswith("weight"):
        return 1 + (_integers(name, shape) // 4).astype(np.float32) / 64
    if len(shape) == 1:
        return _integers(name, shape) * np.float32(2**-11)
    return _integers(name, shape) * np.float32(2.0 ** round(math.log2(_spread(name, shape) / DEVIATION)))


def _spread(name: str, shape: tuple[int, ...]) -> float:
    if "relative_attention_bias" in name:
        return 1.0
    inputs = shape[1] * math.prod(shape[2:])
    # T5 does not divide its scores by the root of a head's size.
    return inputs**-0.5 / (8 if name.endswith("SelfAttention.q.weight") else 1)


def tokens(name: str, *shape: int) -> np.ndarray:
    return _integers(name, shape) * np.float32(2**-6)


def modulation(name: str, rows: int) -> np.ndarray:
    """[rows, D]: shift, scale and gate, once or twice."""
    return _integers(name, (rows, FLUX_WIDTH)) * np.float32(2**-6)


def positions(size: Size) -> np.ndarray:
    """[T + L, 3], as FLUX.1 has them: text at the origin, the image at its rows and columns."""
    places = np.indices(size.grid).reshape(2, -1)
    image = np.stack([np.zeros(size.image, np.int64), *places], axis=1)
    return np.concatenate([np.zeros((size.text, 3), np.int64), image])


def projected(out: np.ndarray) -> np.ndarray:
    """[..., D] -> [N, PROJECTIONS], every number of a row in each: a wrong tile shows, and little is stored."""
    signs = np.sign(_integers("signs", (out.shape[-1], PROJECTIONS)) + 0.5)
    return (out.reshape(-1, out.shape[-1]).astype(np.float64) @ signs).astype(np.float32)


def _integers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """-128..127, of a raw generator: the same on every machine and with every version of NumPy."""
    count = math.prod(shape)
    raw = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw(-(-count // 8))
    return raw.astype("<u8").view(np.int8)[:count].reshape(shape)
