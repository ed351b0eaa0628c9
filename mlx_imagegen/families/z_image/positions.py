"""Where tokens stand: [tokens, 3] (time, row, column), for rope tables.

The prompt's tokens follow one another in time from 1, those that fill it up as well; the picture stands at the time
after them, spread over its rows and columns; the tokens that fill the picture up stand at 0.
Must not know: what the tokens hold.
"""

import numpy as np

from ...layers.patches import Grid
from .transformer import filled_length


def prompt_positions(length: int) -> np.ndarray:
    """`length`: filled up."""
    return np.stack([np.arange(1, length + 1), np.zeros(length, int), np.zeros(length, int)], axis=-1)


def picture_positions(grid: Grid, prompt: int) -> np.ndarray:
    """`prompt`: its length, filled up."""
    rows, columns = np.indices(grid).reshape(2, -1)
    picture = np.stack([np.full_like(rows, prompt + 1), rows, columns], axis=-1)
    return np.pad(picture, ((0, filled_length(len(picture)) - len(picture)), (0, 0)))
