"""Timestep embedding: sinusoids, then a two-layer MLP, all in float32."""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .activation import silu
from .linear import Linear

FREQUENCIES = 256  # sinusoid channels; diffusers fixes this number in code for both FLUX.1 and Qwen-Image
PERIOD = 10000.0  # of the slowest one, over 2 pi


def sinusoids(t: Sequence[float], dims: int = FREQUENCIES, scale: float = 1.0) -> mx.array:
    """t x scale (0..1000 for timesteps) -> [T, dims], cosines first.

    Made on the host, rounding to float32 where the reference does: an angle of 1000 turns one unit in the last place of
    a frequency into an error of 6e-5, which no later float32 step would forgive. For the same reason it matters whether
    t comes as 0..1000 (FLUX.1) or as 0..1 to be scaled after the product (Qwen-Image).
    """
    half = dims // 2
    exponents = np.float32(-math.log(PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.float32(scale) * (np.asarray(t, np.float32)[:, None] * frequencies)).astype(np.float64)
    return mx.array(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))


def rounded_twice(timesteps: Sequence[float]) -> list[float]:
    """As diffusers rounds float32 timesteps: divided by 1000 for the model, multiplied by 1000 in it."""
    times: list[float] = (np.array(timesteps, np.float32) / np.float32(1000) * np.float32(1000)).tolist()
    return times


class EmbeddingMLP(nn.Module):
    """linear_1, SiLU, linear_2: the timestep, guidance and pooled-text embedders of diffusers' transformers."""

    def __init__(self, inputs: int, dims: int, bias: bool = True):
        super().__init__()
        self.linear_1 = Linear(inputs, dims, bias)
        self.linear_2 = Linear(dims, dims, bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


class TimestepEmbedder(nn.Module):
    """The same by the names of Lumina's line (Z-Image, HiDream-O1), from the timesteps themselves."""

    def __init__(self, dims: int, frequencies: int = FREQUENCIES, hidden: int | None = None):
        super().__init__()
        # The checkpoint numbers the layers mlp.0 and mlp.2; 1 is the SiLU.
        self.mlp = {"0": Linear(frequencies, hidden or dims), "2": Linear(hidden or dims, dims)}
        self._frequencies = frequencies

    def __call__(self, t: Sequence[float]) -> mx.array:
        """Timesteps, 0..1000 -> [T, D] in float32"""
        return self.mlp["2"](silu(self.mlp["0"](sinusoids(t, self._frequencies))))


class Table(nn.Module):
    """An embedding table's place in a module tree. It is never filled: rows are gathered from the file."""

    def __init__(self, name: str, rows: int, dims: int):
        super().__init__()
        *path, leaf = name.split(".")
        node: nn.Module = self
        for part in path:
            node[part] = nn.Module()
            node = node[part]
        node[leaf] = mx.zeros((rows, dims))
