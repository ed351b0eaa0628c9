"""Pictures as vision towers take them: resized with Pillow and normed, by a preprocessor_config.json.

In: a picture. Out: [H, W, 3] in float32, transformers' numbers. Must not know: towers, patches, families.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

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

    @property
    def sound(self) -> dict[str, bool]:
        """By field: whether pictures can be prepared by it."""
        return {
            "image_mean": len(self.image_mean) == COLOURS,
            "image_std": len(self.image_std) == COLOURS and min(self.image_std) > 0,
            "resample": self.resample in list(Image.Resampling),
        }

    def checked(self, where: str | Path) -> Self:
        if odd := next((name for name, fits in self.sound.items() if not fits), None):
            raise ConfigError(
                f"{where}: field '{odd}' is {shown(getattr(self, odd))}, by which no picture can be prepared; take "
                "the file from the model's repository."
            )
        return self

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

    @property
    def sound(self) -> dict[str, bool]:
        return super().sound | {"size": self.size.keys() == {"height", "width"}}

    def prepared(self, image: Image.Image) -> np.ndarray:
        return self.pixels(image, (self.size["width"], self.size["height"]))


def read_fixed_size(path: Path, side: int) -> FixedSizeConfig:
    """`side`: of the pictures that the tower takes."""
    data: dict[str, Any] = read_json(path)
    config = FixedSizeConfig.read(data, path).checked(path)
    if set(config.size.values()) != {side}:
        raise ConfigError(
            f"{path}: field 'size' is {shown(config.size)}, and the vision tower takes {side}x{side}: the files are of "
            "different models. Take them from one repository."
        )
    return config
