"""Pictures as token sequences: `side` x `side` pixels or latents, of every channel, make one token."""

import mlx.core as mx

Grid = tuple[int, int]  # rows, columns of tokens


def patchified(x: mx.array, side: int, channels_last: bool = False) -> mx.array:
    """[B, C, H, W] -> [B, H/side * W/side, C * side²]; a token's values are ordered (channel, row, column), or with
    `channels_last` (row, column, channel)."""
    batch, channels, height, width = x.shape
    order = (0, 2, 4, 3, 5, 1) if channels_last else (0, 2, 4, 1, 3, 5)
    x = x.reshape(batch, channels, height // side, side, width // side, side).transpose(order)
    return x.reshape(batch, (height // side) * (width // side), channels * side**2)


def unpatchified(x: mx.array, grid: Grid, side: int, channels_last: bool = False) -> mx.array:
    """[B, rows * columns, C * side²] -> [B, C, rows * side, columns * side]"""
    rows, columns = grid
    values = (side, side, -1) if channels_last else (-1, side, side)
    order = (0, 5, 1, 3, 2, 4) if channels_last else (0, 3, 1, 4, 2, 5)
    x = x.reshape(x.shape[0], rows, columns, *values).transpose(order)
    return x.reshape(x.shape[0], -1, rows * side, columns * side)
