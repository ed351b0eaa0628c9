"""Where tokens stand: [tokens, 3] (time, row, column), for rope tables.

The prompt's tokens follow one another in time from 1, those that fill it up as well; the picture stands at the time
after them, spread over its rows and columns; the tokens that fill the picture up stand at 0. In the Omni edition a
prompt comes in pieces; after each is room for a picture and for what the vision tower sees of it, and the tokens that
fill a piece up take none.
Must not know: what the tokens hold.
"""

from collections.abc import Sequence

import numpy as np

from ...layers.patches import Grid
from .transformer import filled_length

ROOM = 2  # times after a piece


def prompt_positions(length: int, start: int = 1) -> np.ndarray:
    """`length`: filled up."""
    return np.stack([np.arange(start, start + length), np.zeros(length, int), np.zeros(length, int)], axis=-1)


def piece_starts(lengths: Sequence[int]) -> list[int]:
    """The times at which pieces of these lengths begin."""
    return [1 + sum(lengths[:place]) + ROOM * place for place in range(len(lengths))]


def picture_times(lengths: Sequence[int]) -> list[int]:
    """At which the pictures after them stand."""
    return [start + length for start, length in zip(piece_starts(lengths), lengths, strict=True)]


def pieces_positions(lengths: Sequence[int]) -> np.ndarray:
    """Of all pieces, each filled up. diffusers puts as many zeros after a piece's positions as tokens fill it up, and
    cuts off what is over at the end, so that the positions of all pieces but the first may be another's."""
    starts, full = piece_starts(lengths), [filled_length(length) for length in lengths]
    pieces = [prompt_positions(count, start) for count, start in zip(full, starts, strict=True)]
    padded = [np.pad(each, ((0, len(each) - n), (0, 0))) for each, n in zip(pieces, lengths, strict=True)]
    return np.concatenate(padded)[: sum(full)]


def picture_positions(grid: Grid, time: int) -> np.ndarray:
    rows, columns = np.indices(grid).reshape(2, -1)
    return _filled_up(np.stack([np.full_like(rows, time), rows, columns], axis=-1))


def seen_positions(seen: Grid, latents: Grid, time: int) -> np.ndarray:
    """What the vision tower sees of a picture, spread over its rows and columns of latents; in float32 and rounded
    down, as in diffusers."""

    def spread(count: int, over: int) -> np.ndarray:
        return (np.arange(count, dtype=np.float32) / np.float32(max(count - 1, 1)) * np.float32(over - 1)).astype(int)

    axes = np.meshgrid([time], spread(seen[0], latents[0]), spread(seen[1], latents[1]), indexing="ij")
    return _filled_up(np.stack(axes, axis=-1).reshape(-1, 3))


def _filled_up(positions: np.ndarray) -> np.ndarray:
    return np.pad(positions, ((0, filled_length(len(positions)) - len(positions)), (0, 0)))
