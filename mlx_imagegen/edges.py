"""Edges of a photo, white on black: Canny's, pixel for pixel as OpenCV draws them.

In: a picture. Out: a picture of its size. Gradients are Sobel's, their size |dx| + |dy|, each pixel's of the colour in
which it is largest. Must not know: models, what edges are for.
"""

import numpy as np
from PIL import Image

LOW, HIGH = 50, 200  # of a gradient's size: what may be an edge next to one, and what is one; FLUX.1 Canny's own
TANGENT_BITS = 15
TANGENT = 13573  # of 22.5 degrees, in units of 2 ** -TANGENT_BITS
BLACK, WHITE = 32, 223  # levels up to and from which a pixel of a drawing is black or white
DRAWN_SHARE = 0.95  # of a drawing's pixels that are one of the two
GREY_LEVELS = 8  # by which the colours of a drawing's pixel may differ


def draw_edges(picture: Image.Image) -> Image.Image:
    dx, dy = _gradients(np.asarray(picture.convert("RGB"), np.int32))
    size = np.abs(dx) + np.abs(dy)  # [H, W]
    thin = _is_largest_across(size, dx, dy)
    edges = _connected((size > HIGH) & thin, (size > LOW) & thin)
    return Image.fromarray(edges.astype(np.uint8) * 255).convert("RGB")


def is_drawing(picture: Image.Image) -> bool:
    """Whether it is black and white already, as pictures of edges are."""
    levels: np.ndarray = np.asarray(picture.convert("RGB"), np.int16)
    grey = levels.max(axis=2) - levels.min(axis=2) <= GREY_LEVELS
    extreme = (levels.max(axis=2) <= BLACK) | (levels.min(axis=2) >= WHITE)
    return bool((grey & extreme).mean() >= DRAWN_SHARE)


def _gradients(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[H, W, 3] -> dx and dy [H, W]; beyond the border stand its own pixels."""
    around = np.pad(levels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = around[:-2] + 2 * around[1:-1] + around[2:]
    across = around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]
    dx, dy = down[:, 2:] - down[:, :-2], across[2:] - across[:-2]
    colour = np.argmax(np.abs(dx) + np.abs(dy), axis=2)[..., None]
    largest_dx, largest_dy = (np.take_along_axis(each, colour, axis=2)[..., 0] for each in (dx, dy))
    return largest_dx, largest_dy


def _is_largest_across(size: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Where a gradient is larger than its two neighbours in its direction, of four; [H, W]."""
    around = np.pad(size, 1)

    def neighbour(down: int, right: int) -> np.ndarray:
        height, width = size.shape
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx).astype(np.int64) * TANGENT, np.abs(dy).astype(np.int64) << TANGENT_BITS
    level, steep = y < x, y > x + (np.abs(dx).astype(np.int64) << (TANGENT_BITS + 1))
    falls = (dx ^ dy) < 0  # the gradient points right and up, or left and down
    across = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    along = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    rising = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    falling = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    diagonal = np.where(falls, falling, rising)
    found: np.ndarray = np.where(level, across, np.where(steep, along, diagonal))
    return found


def _connected(sure: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """What is possible and hangs together with what is sure, over corners too."""
    width = sure.shape[1] + 2
    open_ = np.pad(possible & ~sure, 1).ravel()
    found = np.pad(sure, 1).ravel()
    steps = np.array([down * width + right for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right])
    front = np.flatnonzero(found)
    while front.size:
        near = np.unique(front[:, None] + steps)
        front = near[open_[near]]
        open_[front] = False
        found[front] = True
    return found.reshape(-1, width)[1:-1, 1:-1]
