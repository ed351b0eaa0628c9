"""What HiDream-O1 takes from reference pictures: patches to attend to, and what the vision tower sees in them.

In: a `Prompt` with references. Out: `Seen`. The tower is loaded for this and let go again.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..family import Prompt
from ..image import to_pixels
from ..layers.patches import Grid, patchified
from ..precision import compute_dtype
from ..text.patches import to_patches
from .files import HiDreamFiles
from .references import Reference, prepared
from .vision import Features, open_tower, see


@dataclass(frozen=True)
class Seen:
    shown: tuple[Grid, ...] = ()  # merged grids, as the prompt shows them
    grids: tuple[Grid, ...] = ()  # of the references' own patches
    patches: mx.array | None = None  # [1, R, C p p]
    features: Features | None = None


def look_at(prompt: Prompt, size: tuple[int, int], files: HiDreamFiles, kept_side: int | None = None) -> Seen:
    """`size`: width and height of the picture to make. `kept_side`: as `prepared` takes it."""
    if not prompt.references:
        return Seen()
    patch = files.config.patch.patch_size
    tower, vision, cut = open_tower(files.config.vision, files.folder, files.weights)
    references = prepared(
        prompt.references,
        size,
        patch=patch,
        shown_side=files.config.patch.condition_image_size,
        shown_multiple=vision.patch_size * vision.spatial_merge_size,
        boxes=dict(prompt.options).get("layout", ()),
        kept_side=kept_side,
    )
    pictures = [to_patches(reference.shown, cut) for reference in references]
    features = see(tower.load(), pictures, compute_dtype())
    tower.release()
    return Seen(
        shown=tuple(picture.merged for picture in pictures),
        grids=tuple((reference.pixels.height // patch, reference.pixels.width // patch) for reference in references),
        patches=mx.concatenate([_patches(reference, patch) for reference in references], axis=1),
        features=features,
    )


def _patches(reference: Reference, patch: int) -> mx.array:
    """[1, R, C p p] in -1..1"""
    pixels = to_pixels(reference.pixels) * 2 - 1
    return patchified(mx.array(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None], patch)
