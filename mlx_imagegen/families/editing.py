"""What families do with reference pictures, by their manifests; and how large FLUX.2 and Z-Image encode each.

In: a manifest's [references], and pictures. Out: pictures brought down, and cut to whole tokens around their middle.
Must not know: what encodes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from PIL import Image

from ..hub.manifest import Manifest
from ..image import cropped, cut_size, of_area
from ..loading.config import Config

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class ReferenceRules(Config):
    """[references] of a manifest."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.read(manifest.extras["references"], f"weights/{manifest.name}.toml")


@dataclass(frozen=True)
class Editing(ReferenceRules):
    area: int  # pixels of a picture at most
    least_side: int  # pixels; this and the next are checked with the request
    largest_ratio: int  # of the longer side to the shorter

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]:
        """What is encoded of pictures of these sizes."""
        return [cut_size(self.scaled_size(size), multiple) for size in sizes]

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]:
        return [cropped(picture, self.area, multiple) for picture in pictures]

    def scaled_size(self, size: Size, target: int | None = None) -> Size:
        """Before the edges are cut off. `target`: pixels of one that has more than it may have, if not just those."""
        return size if math.prod(size) <= self.area else of_area(size, target or self.area)
