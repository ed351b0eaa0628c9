"""Latent pictures as token sequences: 2x2 latents of every channel make one token (FLUX.1, Qwen-Image)."""

import mlx.core as mx


def packed(x: mx.array) -> mx.array:
    """[B, C, H, W] -> [B, H/2 * W/2, C * 4]; a token's channels are ordered (channel, row, column)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpacked(x: mx.array, height: int, width: int) -> mx.array:
    """[B, H/2 * W/2, C * 4] -> [B, C, H, W]"""
    batch, _, channels = x.shape
    x = x.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, channels // 4, height, width)
