"""Pictures as Qwen's vision towers take them, for editing: transformers' image processor with Pillow, number for
number.

In: a picture and preprocessor_config.json. Out: `Patches`, in the order of merged patches.
Must not know: the tower, prompts, families.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from PIL import Image

from ..documents import read_json
from ..errors import ConfigError, MissingFileError, RequestError
from ..layers.patches import Grid
from ..loading.config import MANY, Range, read_table
from .pixels import PixelConfig

MAX_ASPECT = 200  # transformers refuses narrower pictures


@dataclass(frozen=True, kw_only=True)
class PatchConfig(PixelConfig):
    """processor/preprocessor_config.json"""

    IGNORED: ClassVar[frozenset[str]] = PixelConfig.IGNORED | {"max_frames", "min_frames", "size"}

    min_pixels: Annotated[int, MANY]
    max_pixels: Annotated[int, MANY]
    patch_size: Annotated[int, Range(1, 256)]
    merge_size: Annotated[int, Range(1, 64)]
    temporal_patch_size: Annotated[int, Range(1, 64)]

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.min_pixels > self.max_pixels:
            yield "max_pixels", f"at least min_pixels ({self.min_pixels})"
        yield from super().misfits()

    @classmethod
    def read_part(cls, data: dict[str, Any], where: Path) -> Self:
        """Older files give min_pixels and max_pixels, newer ones a size with a shortest and a longest edge; both mean
        areas."""
        size = read_table(data, "size", where)
        named = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        given = {name: value for name, value in data.items() if value is not None}
        return cls.read({name: value for name, value in named.items() if value is not None} | given, where)

    def check_tower(self, tower: "TowerPatches", where: Path, of: Path) -> None:
        """Raises for a processor's config in `where` that prepares pictures for another tower than `of`'s."""
        for field, found, expected in (
            ("patch_size", self.patch_size, tower.patch_size),
            ("merge_size", self.merge_size, tower.spatial_merge_size),
            ("temporal_patch_size", self.temporal_patch_size, tower.temporal_patch_size),
        ):
            if found != expected:
                raise ConfigError(
                    f"{where}: field '{field}' is {found}, but {of}'s vision_config has {expected}: the "
                    "files are of different models. Take them from one repository."
                )


class TowerPatches(Protocol):
    """Of a tower's config, how it cuts pictures."""

    @property
    def patch_size(self) -> int: ...

    @property
    def spatial_merge_size(self) -> int: ...

    @property
    def temporal_patch_size(self) -> int: ...


def read_patch_config(*folders: Path) -> PatchConfig:
    """From preprocessor_config.json, or the image processor's part of processor_config.json (newer transformers), in
    the first of `folders` that has one."""
    for folder in folders:
        alone, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
        if alone.is_file():
            return PatchConfig.read_part(read_json(alone), alone)
        if joint.is_file() and isinstance(part := read_json(joint).get("image_processor"), dict):
            return PatchConfig.read_part(part, joint)
    missing = folders[0] / "preprocessor_config.json"
    raise MissingFileError(
        f"{missing} is not there, by which pictures are prepared for the vision tower; download it from the model's "
        "repository."
    )


class Patches(NamedTuple):
    values: np.ndarray  # [rows x columns, channels x time x patch x patch]
    grid: Grid  # patches
    merged: Grid  # what the language model sees


def to_patches(image: Image.Image, config: PatchConfig) -> Patches:
    """A picture, resized to whole merged patches, in the order of merged patches."""
    width, height = _fitting(image.size, config)
    pixels = config.pixels(image, (width, height))
    patch, merge = config.patch_size, config.merge_size
    rows, columns = height // patch, width // patch
    # [H, W, C] -> [rows/m, m, p, columns/m, m, p, C] -> [rows/m, columns/m, m, m, C, p, p]
    parts = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, -1)
    parts = parts.transpose(0, 3, 1, 4, 6, 2, 5)
    parts = np.repeat(parts[:, :, :, :, :, None], config.temporal_patch_size, axis=5)  # a picture is two equal frames
    return Patches(parts.reshape(rows * columns, -1), (rows, columns), (rows // merge, columns // merge))


def merged_grid(size: tuple[int, int], config: PatchConfig) -> Grid:
    """What the language model will see of a picture of that width and height."""
    width, height = _fitting(size, config)
    factor = config.patch_size * config.merge_size
    return height // factor, width // factor


def _fitting(size: tuple[int, int], config: PatchConfig) -> tuple[int, int]:
    """Width and height as multiples of a merged patch, with an area between min_pixels and max_pixels."""
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise RequestError(
            f"a reference picture of {width}x{height} is too narrow: the sides may differ {MAX_ASPECT} times at most."
        )
    factor = config.patch_size * config.merge_size
    fitted = round(width / factor) * factor, round(height / factor) * factor
    if math.prod(fitted) > config.max_pixels:
        shrink = math.sqrt(width * height / config.max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in size)  # type: ignore[return-value]
    if math.prod(fitted) < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (width * height))
        return tuple(math.ceil(side * grow / factor) * factor for side in size)  # type: ignore[return-value]
    return fitted
