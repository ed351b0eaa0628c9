"""Pictures as SigLIP2's vision tower takes them: at their own proportions, in at most so many patches.

In: a picture and preprocessor_config.json. Out: patches, and the grid in which they lie; transformers' image processor
with Pillow, number for number, without the patches that only fill up a batch.
Must not know: the tower, families.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image

from ..documents import read_json
from ..errors import ConfigError
from ..layers.patches import Grid
from ..loading.config import INDEX, Range
from .pixels import PixelConfig
from .siglip import Siglip2Config

# Of transformers' search for the largest scale at which a picture fits.
LARGEST_SCALE, PRECISION = 100.0, 1e-5


@dataclass(frozen=True, kw_only=True)
class NaflexConfig(PixelConfig):
    """siglip_processor/preprocessor_config.json"""

    IGNORED: ClassVar[frozenset[str]] = PixelConfig.IGNORED | {"size"}

    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: Annotated[int, INDEX] = int(Image.Resampling.BILINEAR)
    max_num_patches: Annotated[int, Range(1, 2**16)] = 256
    patch_size: Annotated[int, Range(1, 256)] = 16

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches for a picture of that width and height."""
        least, most = PRECISION / 10, LARGEST_SCALE
        while most - least >= PRECISION:
            scale = (least + most) / 2
            if math.prod(self._scaled(size, scale)) <= self.max_num_patches:
                least = scale
            else:
                most = scale
        return self._scaled(size, least)

    def _scaled(self, size: tuple[int, int], scale: float) -> Grid:
        width, height = (max(1, math.ceil(side * scale / self.patch_size)) for side in size)
        return height, width

    def patches(self, image: Image.Image) -> tuple[np.ndarray, Grid]:
        """[rows * columns, patch * patch * 3]; a patch's values are ordered (row, column, colour)."""
        (rows, columns), side = self.grid(image.size), self.patch_size
        pixels = self.pixels(image, (columns * side, rows * side))
        parts = pixels.reshape(rows, side, columns, side, -1).transpose(0, 2, 1, 3, 4)
        return parts.reshape(rows * columns, -1), (rows, columns)


def read_naflex_config(path: Path, tower: Siglip2Config) -> NaflexConfig:
    config = NaflexConfig.read(read_json(path), path)
    if config.patch_size != tower.patch_size:
        raise ConfigError(
            f"{path}: field 'patch_size' is {config.patch_size}, and the vision tower has {tower.patch_size}: the "
            "files are of different models. Take them from one repository."
        )
    return config
