"""Reference pictures of Qwen-Image-2.1: both the language model and the autoencoder are shown one at the same size.

In: a manifest's [references], and pictures. Out: pictures resized. Must not know: what encodes them.
"""

from dataclasses import dataclass

from PIL import Image

from ...image import ALPHA, proportioned
from ..editing import ReferenceRules, Size


@dataclass(frozen=True)
class Editing(ReferenceRules):
    area: int  # pixels of a reference as it is read, about
    multiple: int  # its sides are multiples of this many pixels

    def size(self, size: Size) -> Size:
        return proportioned(size, self.area, self.multiple)

    def resized(self, picture: Image.Image) -> Image.Image:
        """RGBA"""
        return picture.convert(ALPHA).resize(self.size(picture.size), Image.Resampling.LANCZOS)
