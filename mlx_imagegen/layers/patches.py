"""Pictures as token sequences: `side` x `side` pixels or latents, of every channel, make one token."""

import mlx.core as mx

Grid = tuple[int, int]  # rows, columns of tokens


def patchified(x: mx.array, side: int) -> mx.array:
    """[B, C, H, W] -> [B, H/side * W/side, C * side²]; a token's values are ordered (channel, row, column)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // side, side, width // side, side).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, (height // side) * (width // side), channels * side**2)


def unpatchified(x: mx.array, grid: Grid, side: int) -> mx.array:
    """[B, rows * columns, C * side²] -> [B, C, rows * side, columns * side]"""
    rows, columns = grid
    x = x.reshape(x.shape[0], rows, columns, -1, side, side).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(x.shape[0], -1, rows * side, columns * side)
