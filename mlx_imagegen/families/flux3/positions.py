"""Where FLUX.3's tokens stand on its four axes: time, row, column, and place in the text or number of the reference.

In: the number of text tokens, and grids (rows, columns) in tokens. Out: positions [N, 4]. Neighbouring tokens of a
picture stand half a unit apart; references are told from the picture by -1, -2, … on the last axis.
"""

from collections.abc import Sequence

import numpy as np

from ...layers.patches import Grid

SPACING = 0.5  # between tokens of a picture


def text_positions(count: int) -> np.ndarray:
    positions = np.zeros((count, 4))
    positions[:, 3] = np.arange(count)
    return positions


def picture_positions(grid: Grid, number: int = 0) -> np.ndarray:
    rows, columns = (SPACING * np.arange(side) for side in grid)
    axes = np.meshgrid([0.0], rows, columns, [-number], indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 4)


def reference_positions(grids: Sequence[Grid]) -> np.ndarray:
    return np.concatenate([picture_positions(grid, number) for number, grid in enumerate(grids, 1)])
