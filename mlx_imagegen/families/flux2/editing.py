"""What FLUX.2 does with reference pictures: how large each is encoded.

In: a manifest's [references], and pictures. Out: pictures brought down, and cut to whole tokens around their middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from PIL import Image

from ...errors import RequestError
from ...hub.manifest import Manifest
from ...image import cropped, cut_size, within_area
from ...loading.config import Config

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Editing(Config):
    """[references] of a manifest."""

    area: int  # pixels of a picture at most
    least_side: int  # pixels
    largest_ratio: int  # of the longer side to the shorter

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.read(manifest.extras["references"], f"weights/{manifest.name}.toml")

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]:
        """What is encoded of pictures of these sizes."""
        for size in sizes:
            self._check(size)
        return [cut_size(within_area(size, self.area), multiple) for size in sizes]

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]:
        return [cropped(picture, self.area, multiple) for picture in pictures]

    def _check(self, size: Size) -> None:
        width, height = size
        if min(size) < self.least_side:
            raise RequestError(
                f"references: a picture of {width}x{height} is too small; both sides must be {self.least_side} pixels "
                "or more. Make it larger."
            )
        if max(size) > self.largest_ratio * min(size):
            raise RequestError(
                f"references: a picture of {width}x{height} is too narrow; one side may be up to {self.largest_ratio} "
                "times the other. Cut out the part that matters."
            )
