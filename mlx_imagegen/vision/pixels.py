"""Pictures as vision towers take them: resized with Pillow and normed, by a preprocessor_config.json.

In: a picture. Out: [H, W, 3] in float32, transformers' numbers. Must not know: towers, patches, families.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image

from ..documents import read_json
from ..errors import ConfigError
from ..escaping import shown
from ..loading.config import INDEX, POSITIVE, Config

COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class PixelConfig(Config):
    """What preprocessor_config.json says of colours and resizing."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        """ crop_size data_format default_to_square device disable_grouping do_center_crop do_convert_rgb do_normalize
        do_rescale do_resize image_processor_type input_data_format pad_size processor_class return_tensors """.split()
    )

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    resample: Annotated[int, INDEX] = int(Image.Resampling.BICUBIC)
    rescale_factor: Annotated[float, POSITIVE] = 1 / 255

    def misfits(self) -> Iterator[tuple[str, str]]:
        if len(self.image_mean) != COLOURS:
            yield "image_mean", "a number for each colour"
        if len(self.image_std) != COLOURS or min(self.image_std) <= 0:
            yield "image_std", "a number above 0 for each colour"
        if self.resample not in list(Image.Resampling):
            yield "resample", "one of Pillow's filters"

    def pixels(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """`size`: width and height. -> [H, W, 3]"""
        image = image.convert("RGB").resize(size, Image.Resampling(self.resample))
        levels: np.ndarray = np.asarray(image, np.float32) * np.float32(self.rescale_factor)
        normed: np.ndarray = (levels - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return normed


@dataclass(frozen=True, kw_only=True)
class FixedSizeConfig(PixelConfig):
    """SigLIP's: every picture is stretched to one size."""

    size: dict[str, int]

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        if self.size.keys() != {"height", "width"}:
            yield "size", "a height and a width"

    def prepared(self, image: Image.Image) -> np.ndarray:
        return self.pixels(image, (self.size["width"], self.size["height"]))


def read_fixed_size(path: Path, side: int) -> FixedSizeConfig:
    """`side`: of the pictures that the tower takes."""
    config = FixedSizeConfig.read(read_json(path), path)
    if set(config.size.values()) != {side}:
        raise ConfigError(
            f"{path}: field 'size' is {shown(config.size)}, and the vision tower takes {side}x{side}: the files are of "
            "different models. Take them from one repository."
        )
    return config
