"""Where Qwen-Image's tokens stand: pictures' grids centred on the origin, one after the other along the first axis;
text on the diagonal, beyond the largest grid.

In: the number of text tokens and the grids (rows, columns) of the picture and of its references, in tokens; of
Qwen-Image-Layered, of the picture put together, its layers, and the picture that is taken apart, which stands before
all of them. Out: positions [T + L, 3], text first.
"""

from collections.abc import Sequence

import numpy as np

from ...layers.patches import Grid


def positions(text: int, grids: Sequence[Grid], layered: bool = False) -> np.ndarray:
    start = max(max(rows // 2, columns // 2) for rows, columns in grids)
    places = list(range(len(grids)))
    if layered:
        start, places[-1] = max(start, len(grids) - 1), -1
    diagonal = np.repeat(np.arange(start, start + text)[:, None], 3, axis=1)
    return np.concatenate([diagonal, *map(_centred, places, grids)])


def _centred(index: int, grid: Grid) -> np.ndarray:
    """(index, row, column) of every token; of an odd count the middle one is the last with a negative number."""
    rows, columns = (np.arange(side) - (side - side // 2) for side in grid)
    axes = np.meshgrid([index], rows, columns, indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3)
