"""What FLUX.1 Kontext takes from reference pictures: their latents as further tokens, in the sizes it was trained on.

In: pictures and a manifest's [references]. Out: which size each is given, and where its tokens stand: on a plane of
their own, several next to each other as if they were one picture.
Must not know: prompts, the autoencoder.
"""

from collections.abc import Sequence

import numpy as np

from ...image import nearest_shape
from ...layers.patches import Grid

PLANE = 1  # the first axis of a reference's positions; the picture's own is 0


def reference_size(size: tuple[int, int], sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """Width and height at which a picture is encoded."""
    width, height = nearest_shape(size, sizes, multiple)
    return width // multiple * multiple, height // multiple * multiple


def reference_positions(grids: Sequence[Grid]) -> np.ndarray:
    """(1, row, column) of every token, [R, 3]; each picture begins right of the one before."""
    parts, left = [], 0
    for rows, columns in grids:
        down, across = np.indices((rows, columns)).reshape(2, -1)
        parts.append(np.stack([np.full_like(down, PLANE), down, across + left], axis=1))
        left += columns
    return np.concatenate(parts)
