"""What the editing checkpoints do with reference pictures: how many, how large, and how the prompt speaks of them.

In: a manifest's [references], and pictures. Out: pictures resized, and the text before the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from PIL import Image

from ...hub.manifest import Manifest
from ...image import proportioned
from ...loading.config import MANY, Config

SEEN = "<|vision_start|><|image_pad|><|vision_end|>"  # where the language model sees a picture


@dataclass(frozen=True)
class Editing(Config):
    """[references] of a manifest."""

    language_area: Annotated[int, MANY]  # pixels of a picture as the language model sees it
    latent_area: Annotated[int, MANY]  # pixels of a picture as the transformer sees it
    multiple: int  # both are resized to sides that are multiples of this many pixels
    numbered: bool  # the prompt begins "Picture 1: …Picture 2: …"

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.read(manifest.extras["references"], f"weights/{manifest.name}.toml")

    def for_language(self, picture: Image.Image) -> Image.Image:
        return resized(picture, self.language_size(picture.size))

    def for_latents(self, picture: Image.Image) -> Image.Image:
        return resized(picture, self.latent_size(picture.size))

    def language_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return proportioned(size, self.language_area, self.multiple)

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return proportioned(size, self.latent_area, self.multiple)

    def introduction(self, pictures: Sequence[object]) -> str:
        """What stands before the user's words."""
        return "".join(
            f"Picture {index}: {SEEN}" if self.numbered else SEEN for index, _ in enumerate(pictures, start=1)
        )


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
