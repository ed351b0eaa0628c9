"""The sequence that Qwen-Image-2.1's transformer reads: runs of text and pictures, in line; the target comes last.

In: `Segments` and arrays. Out: positions, tokens in the sequence's order, and attention by its rule: text sees what
stands before it, a picture in addition all of itself. Two pictures without text between them stay two.
Must not know: prompts, weights, timesteps.
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ...layers.attention import attend
from ...layers.patches import Grid

Segments = Sequence[int | Grid]  # a count of text tokens, or a picture's rows and columns


def length_of(segment: int | Grid) -> int:
    return segment if isinstance(segment, int) else math.prod(segment)


def positions(segments: Segments) -> np.ndarray:
    """[L, 3]: text counts up on all axes; a picture stands where the count is, its rows and columns around zero, and
    the count goes on by its longer side."""
    parts, start = [], 0
    for segment in segments:
        if isinstance(segment, int):
            parts.append(np.repeat(np.arange(start, start + segment)[:, None], 3, axis=1))
            start += segment
        else:
            rows, columns = (np.arange(side) - (side - side // 2) for side in segment)
            axes = np.meshgrid([start], rows, columns, indexing="ij")
            parts.append(np.stack(axes, axis=-1).reshape(-1, 3))
            start += max(segment)
    return np.concatenate(parts)


def in_line(txt: mx.array, pictures: mx.array | None, segments: Segments) -> mx.array:
    """Text tokens [1, T, D] and the pictures' [1, R, D], each in their order -> [1, T + R, D]."""
    if pictures is None:
        return txt
    parts, of_text, of_pictures = [], 0, 0
    for segment in segments:
        count = length_of(segment)
        if isinstance(segment, int):
            parts.append(txt[:, of_text : of_text + count])
            of_text += count
        else:
            parts.append(pictures[:, of_pictures : of_pictures + count])
            of_pictures += count
    return mx.concatenate(parts, axis=1)


def attend_in_line(q: mx.array, k: mx.array, v: mx.array, segments: Segments) -> mx.array:
    """[1, H, L, D] each -> [1, L, H D]. Segment by segment: one mask for ten pictures would have 1.7 thousand million
    entries."""
    parts, start = [], 0
    for segment in segments:
        stop = start + length_of(segment)
        mask = "causal" if isinstance(segment, int) else None  # aligned with the last key
        parts.append(attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask=mask))
        start = stop
    return mx.concatenate(parts, axis=1)
