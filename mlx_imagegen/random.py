"""Gaussian noise equal to torch's CPU generator, so that a seed gives the same picture as in diffusers and ComfyUI.

In: a seed. Out: float32 arrays, drawn one after another from one stream. They equal torch.randn to 5e-7 from 16 values
up. Torch draws fewer than 16 values in another way, which no picture needs.
"""

import math

import mlx.core as mx
import numpy as np

SEED_LIMIT = 2**32  # torch keeps the low 32 bits of a seed for this generator; a larger one would repeat a smaller


class TorchGenerator:
    """torch.Generator("cpu").manual_seed(seed), for randn only."""

    def __init__(self, seed: int):
        self._bits = np.random.MT19937()
        # The classic init_genrand; numpy's public seeding hashes the seed.
        self._bits._legacy_seeding(seed % SEED_LIMIT)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """torch.randn(shape) in float32, as numpy."""
        count = math.prod(shape)
        if count < 16:
            raise ValueError(f"noise of {count} values cannot match torch, which draws fewer than 16 by another route")
        blocks = self._uniform(count - count % 16).reshape(-1, 16)
        out = _box_muller(blocks).reshape(-1)
        if count % 16:  # torch redraws the last 16 values as a block of their own
            tail = _box_muller(self._uniform_tail(count, blocks.size)).reshape(-1)
            out = np.concatenate([out[: count - 16], tail])
        return out.reshape(shape)

    def randn(self, shape: tuple[int, ...]) -> mx.array:
        return mx.array(self.normal(shape))

    def _uniform(self, count: int) -> np.ndarray:
        words = self._bits.random_raw(count)
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)

    def _uniform_tail(self, count: int, drawn: int) -> np.ndarray:
        self._uniform(count - drawn)  # the values that torch drew for the tail and then overwrote
        return self._uniform(16).reshape(1, 16)


def _box_muller(blocks: np.ndarray) -> np.ndarray:
    """[n, 16] uniforms -> [n, 16] normals: the first 8 give radii, the last 8 angles."""
    radius = np.sqrt(np.float32(-2) * np.log(1 - blocks[:, :8]))
    angle = np.float32(2 * math.pi) * blocks[:, 8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
