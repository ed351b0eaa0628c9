"""Reference pictures of Z-Image-Omni: packed latents, and what SigLIP2 sees of them, refined for the transformer.

In: a prompt's pictures, the size of the picture to be made, the times at which they stand. Out: `ShownReferences`.
Must not know: the prompt's words, the loop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from ...image import cropped, cut_size, to_pixels
from ...layers.patches import Grid, patchified
from ...layers.rope import rope_table
from ...loading.checkpoint import open_checkpoint
from ...loading.component import Component
from ...loading.config import read_json
from ...loading.tensors import name_tensors
from ...loading.weights import Weights, check_tensors
from ...precision import compute_dtype
from ...vision.naflex import NaflexConfig, read_naflex_config
from ...vision.siglip import UNUSED, Siglip2Config, Siglip2VisionModel
from ...vision.tower import without_prefix
from ..editing import Editing, Size
from ..folder import DiffusersFolder
from .config import ZImageConfig
from .positions import picture_positions, seen_positions
from .transformer import MULTIPLE

PADS = np.zeros((MULTIPLE, 3), int)  # stand for what would be seen of the picture to be made


@dataclass(frozen=True)
class ReferenceFiles:
    tower_config: Siglip2Config
    tower: Weights
    pixels: NaflexConfig
    editing: Editing

    def scaled_sizes(self, sizes: Sequence[Size], made: Size, multiple: int) -> list[Size]:
        """Of pictures, before their edges are cut off. Large ones get the area of the picture to be made; diffusers
        takes the largest area where that one's size follows from the last of them."""
        follows = cut_size(self.editing.scaled_size(sizes[-1]), multiple) == made
        return [self.editing.scaled_size(size, None if follows else math.prod(made)) for size in sizes]


def open_reference_files(folder: DiffusersFolder, config: ZImageConfig) -> ReferenceFiles:
    tower, path = folder.config("siglip", Siglip2Config.read), folder.where("siglip")
    folder.check_widths(
        "siglip", ("hidden_size", tower.hidden_size, config.siglip_feat_dim or 0, "transformer's siglip_feat_dim")
    )
    named = name_tensors("image_encoder", open_checkpoint(path.parent), without_prefix, read_json(path))
    weights = check_tensors(named, [Siglip2VisionModel(tower)], UNUSED, transforms=folder.transforms)
    pixels = read_naflex_config(folder.path / "siglip_processor" / "preprocessor_config.json", tower)
    return ReferenceFiles(tower, weights, pixels, Editing.of(folder.manifest))


class Read(NamedTuple):
    """One picture."""

    latents: mx.array  # [1, C, h, w] in the loop's scale; the posterior's mode, not a sample
    features: mx.array  # [1, patches, F]
    grid: Grid  # of patches


@dataclass(frozen=True)
class ShownReferences:
    tokens: mx.array  # packed latents, one picture after another: [1, R, C]
    lengths: tuple[int, ...]  # of each
    positions: np.ndarray  # of all, each filled up
    seen: mx.array  # refined, each picture filled up, then as many pad tokens as `PADS`: [1, S, D]
    seen_positions: np.ndarray


@dataclass(frozen=True)
class ReferenceEncoder:
    """The components, and what it takes to use them; their stage has them loaded."""

    files: ReferenceFiles
    config: ZImageConfig
    components: Mapping[str, Component]
    encode_image: Callable[[mx.array], mx.array]  # the family's

    def encode(
        self, pictures: Sequence[Image.Image], made: Size, multiple: int, times: Sequence[int]
    ) -> ShownReferences:
        """`made`: the size of the picture to be made. `times`: one a picture, at which its latents stand."""
        sizes = self.files.scaled_sizes([picture.size for picture in pictures], made, multiple)
        scaled = (each.resize(size, Image.Resampling.LANCZOS) for each, size in zip(pictures, sizes, strict=True))
        return self.placed([self.read(picture, multiple) for picture in scaled], times)

    def read(self, picture: Image.Image, multiple: int) -> Read:
        cut = cropped(picture, math.prod(picture.size), multiple)
        latents = self.encode_image(mx.array(to_pixels(cut) * 2 - 1))
        values, grid = self.files.pixels.patches(picture)
        states = self.components["image_encoder"].load()(mx.array(values)[None].astype(compute_dtype()), grid)
        # diffusers turns patches and channels round and cuts the numbers into patches again, so that a token holds
        # runs of single channels. No weights are published that would tell another order.
        read = Read(latents, states.transpose(0, 2, 1).reshape(states.shape), grid)
        mx.eval(read)
        return read

    def placed(self, read: Sequence[Read], times: Sequence[int]) -> ShownReferences:
        side, shapes = self.config.patch_size, [(each.latents.shape[2], each.latents.shape[3]) for each in read]
        grids = [(rows // side, columns // side) for rows, columns in shapes]
        shown_at = [picture_positions(grid, time) for grid, time in zip(grids, times, strict=True)]
        seen_at = [
            seen_positions(each.grid, shape, time + 1) for each, shape, time in zip(read, shapes, times, strict=True)
        ]
        positions = np.concatenate([*seen_at, PADS])
        rope = rope_table(positions, self.config.axes_dims, self.config.rope_theta, np.float32)
        lengths = [*(math.prod(each.grid) for each in read), 0]
        features = mx.concatenate([each.features for each in read], axis=1)
        refined = self.components["reference_refiner"].load()(features, rope, lengths)
        tokens = mx.concatenate([patchified(each.latents, side, channels_last=True) for each in read], axis=1)
        mx.eval(tokens, refined)
        return ShownReferences(tokens, tuple(map(math.prod, grids)), np.concatenate(shown_at), refined, positions)
