"""What FLUX.2 does with reference pictures: how large each is encoded.

In: a manifest's [references], and pictures. Out: pictures brought down, and cut to whole tokens around their middle.
"""

from dataclasses import dataclass
from typing import Self

from PIL import Image

from ...errors import RequestError
from ...hub.manifest import Manifest
from ...image import within_area
from ...loading.config import Config


@dataclass(frozen=True)
class Editing(Config):
    """[references] of a manifest."""

    area: int  # pixels of a picture at most
    least_side: int  # pixels
    largest_ratio: int  # of the longer side to the shorter

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.read(manifest.extras["references"], f"weights/{manifest.name}.toml")

    def size(self, size: tuple[int, int], multiple: int) -> tuple[int, int]:
        """What is encoded of a picture of this size."""
        self._check(size)
        width, height = within_area(size, self.area)
        return width // multiple * multiple, height // multiple * multiple

    def prepared(self, picture: Image.Image, multiple: int) -> Image.Image:
        width, height = self.size(picture.size, multiple)
        picture = picture.resize(within_area(picture.size, self.area), Image.Resampling.LANCZOS)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))

    def _check(self, size: tuple[int, int]) -> None:
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
