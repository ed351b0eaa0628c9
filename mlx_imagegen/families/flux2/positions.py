"""Where FLUX.2's tokens stand on its four axes: time, row, column, place in the text.

In: the number of text tokens, and grids (rows, columns) in tokens. Out: positions [N, 4]. The picture stands at time 0,
reference pictures at 10, 20, …; text counts up on the last axis alone.
"""

from collections.abc import Sequence

import numpy as np

from ...layers.patches import Grid

REFERENCE_TIME = 10  # between one reference picture and the next


def text_positions(count: int) -> np.ndarray:
    positions = np.zeros((count, 4), np.int64)
    positions[:, 3] = np.arange(count)
    return positions


def picture_positions(grid: Grid, time: int = 0) -> np.ndarray:
    axes = np.meshgrid([time], np.arange(grid[0]), np.arange(grid[1]), [0], indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 4)


def reference_positions(grids: Sequence[Grid]) -> np.ndarray:
    placed = [picture_positions(grid, REFERENCE_TIME * number) for number, grid in enumerate(grids, 1)]
    return np.concatenate([np.zeros((0, 4), np.int64), *placed])
