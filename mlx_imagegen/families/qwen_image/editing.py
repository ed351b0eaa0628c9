"""What the editing checkpoints do with reference pictures: how many, how large, and how the prompt speaks of them.

In: a manifest's [references], and pictures. Out: pictures resized, and the text before the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from PIL import Image

from ...image import proportioned, resized
from ...loading.config import MANY
from ..editing import ReferenceRules

SEEN = "<|vision_start|><|image_pad|><|vision_end|>"  # where the language model sees a picture


@dataclass(frozen=True)
class Editing(ReferenceRules):
    language_area: Annotated[int, MANY]  # pixels of a picture as the language model sees it
    latent_area: Annotated[int, MANY]  # pixels of a picture as the transformer sees it
    multiple: int  # both are resized to sides that are multiples of this many pixels
    numbered: bool  # the prompt begins "Picture 1: …Picture 2: …"

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
