"""Timestep embedding: sinusoids, then a two-layer MLP, all in float32."""

import math

import mlx.core as mx
import mlx.nn as nn

from .activation import silu
from .linear import Linear

FREQUENCIES = 256  # sinusoid channels; diffusers fixes this number in code for FLUX.1 and Qwen-Image alike


def sinusoids(t: mx.array, dims: int = FREQUENCIES, period: float = 10000.0) -> mx.array:
    """t [T] (0..1000 for timesteps) -> [T, dims], cosines first."""
    half = dims // 2
    frequencies = mx.exp(-math.log(period) * mx.arange(half, dtype=mx.float32) / half)
    angles = t.astype(mx.float32)[:, None] * frequencies[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class EmbeddingMLP(nn.Module):
    """linear_1, SiLU, linear_2: the timestep, guidance and pooled-text embedders of diffusers' transformers."""

    def __init__(self, inputs: int, dims: int):
        super().__init__()
        self.linear_1 = Linear(inputs, dims)
        self.linear_2 = Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


class Table(nn.Module):
    """An embedding table's place in a module tree. It is never filled: rows are gathered from the file."""

    def __init__(self, name: str, rows: int, dims: int):
        super().__init__()
        *path, leaf = name.split(".")
        node: nn.Module | dict = self
        for part in path:
            node[part] = node = {}
        node[leaf] = mx.zeros((rows, dims))
