"""What FLUX.3 does with reference pictures: how large each is encoded.

In: a manifest's [references], and pictures. Out: pictures brought down; one alone keeps its edges, and is mirrored
beyond them up to whole tokens; of several the edges are cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ...image import canvas, cropped, cut_size, within_area
from ..editing import ReferenceRules

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Editing(ReferenceRules):
    area: int  # pixels of each of several, at most
    canvas_area: int  # of one alone, with what is mirrored

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]:
        """What is encoded of pictures of these sizes."""
        if len(sizes) == 1:
            return [canvas(sizes[0], self.canvas_area, multiple)[1]]
        return [cut_size(within_area(size, self.area), multiple) for size in sizes]

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]:
        if len(pictures) == 1:
            return [self._mirrored(pictures[0], multiple)]
        return [cropped(picture, self.area, multiple) for picture in pictures]

    def _mirrored(self, picture: Image.Image, multiple: int) -> Image.Image:
        size, (width, height) = canvas(picture.size, self.canvas_area, multiple)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        edges = ((top, height - size[1] - top), (left, width - size[0] - left), (0, 0))
        # A mirror image without its edge is too short to fill a token from less than one.
        mode: Literal["reflect", "symmetric"] = "reflect" if min(size) > multiple else "symmetric"
        return Image.fromarray(np.pad(np.asarray(picture.convert("RGB")), edges, mode=mode))
