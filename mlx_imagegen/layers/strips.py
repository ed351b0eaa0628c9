"""Pictures too large for one pass, cut into row strips, with the numbers of the uncut pass.

An activation [B, H, W, C] is held as `Strips`: its rows, top to bottom, in one or more arrays. A layer makes its
output strip by strip: it asks its input for the rows it needs (a 3x3 convolution for one row more on each side),
whichever strips they lie in, and drops the input's strips that no later row needs. So a convolution's temporaries (on
the CPU nine copies of its input, on Metal about five) exist for one strip only, and nothing is approximated: there are
no blended overlaps and no statistics of a part. One strip is the uncut picture; there is no second code path.
Must not know: which layers there are, files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import mlx.core as mx

# What a layer may take for one strip on top of its input and output. At 1024x1024 FLUX.1's decoder holds two
# activations of 512 MiB whatever the strips, so that smaller ones gain little; and each strip costs Metal a fresh
# Winograd transform of the weights (64 MiB at 512 channels), so that it should be well larger than that.
STRIP_BYTES = 256 * 2**20

TILE_ROWS = 6  # of a 3x3 convolution on Metal (Winograd's F(6, 3)): what a strip has beyond them costs a tile as well

Span = tuple[int, int]  # rows [start, stop)


@dataclass(frozen=True)
class Cut:
    """How an activation is cut: into `rows` rows a strip, or, when that is None, by what a row costs."""

    rows: int | None = None
    strip_bytes: int = STRIP_BYTES

    def spans(self, height: int, row_bytes: int) -> list[Span]:
        """The strips of `height` rows, when making one row takes `row_bytes` of temporaries."""
        rows = self.rows or max(1, self.strip_bytes // row_bytes)
        if self.rows is None and rows > TILE_ROWS:
            rows -= rows % TILE_ROWS
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]


class Strips:
    """One activation, as arrays [B, rows, W, C] from top to bottom."""

    def __init__(self, cut: Cut, parts: Iterable[mx.array] = ()):
        self.cut = cut
        self.height = 0
        self._parts: list[tuple[int, mx.array]] = []  # (first row, rows), those not dropped
        for part in parts:
            self.append(part)

    def append(self, part: mx.array) -> None:
        """Adds the next rows, evaluated now: what they were made of can go before the next strip starts."""
        mx.eval(part)
        self._parts.append((self.height, part))
        self.height += part.shape[1]

    def __iter__(self) -> Iterator[mx.array]:
        return (part for _, part in self._parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, _, width, channels = self._parts[-1][1].shape
        return batch, self.height, width, channels

    @property
    def row_bytes(self) -> int:
        batch, _, width, channels = self.shape
        return batch * width * channels * self._parts[-1][1].itemsize

    def held(self) -> "Strips":
        """The same activation, kept where this one is given up piece by piece."""
        return Strips(self.cut, self)

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows [start, stop), from one strip or several."""
        pieces = []
        for first, part in self._parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[1])
            if low < high:
                pieces.append(part if (low, high) == (0, part.shape[1]) else part[:, low:high])
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)

    def drop_above(self, row: int) -> None:
        """Lets the strips go that end at or above `row`; their rows can no longer be asked for."""
        self._parts = [(first, part) for first, part in self._parts if first + part.shape[1] > row]

    def joined(self) -> mx.array:
        """[B, H, W, C]"""
        return self.rows(0, self.height)
