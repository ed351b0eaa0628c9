"""Where FLUX.1's tokens stand.

In: how many tokens of text, the picture's rows and columns, the grids of its references. Out: rope tables.
Must not know: prompts, requests.
"""

from collections.abc import Sequence

import numpy as np

from ...layers.patches import Grid
from ...layers.rope import Rope, rope_table
from .references import reference_positions

THETA = 10000.0  # rope's base; fixed in diffusers' code


def rope(text_length: int, grid: Grid, references: Sequence[Grid], axes: Sequence[int]) -> Rope:
    """Every text token stands at (0, 0, 0), image tokens at (0, row, column). `axes`: how a head's numbers are shared
    out over the three."""
    rows, columns = np.indices(grid).reshape(2, -1)
    image = np.stack([np.zeros_like(rows), rows, columns], axis=-1)
    shown = [reference_positions(references)] if references else []
    positions = np.concatenate([np.zeros((text_length, 3), image.dtype), image, *shown])
    return rope_table(positions, axes, THETA)
