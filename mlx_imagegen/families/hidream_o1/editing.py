"""What HiDream-O1 takes from reference pictures: patches to attend to, and what the vision tower sees in them.

In: a `Prompt` with references. Out: `EncodedReferences`. The tower is loaded for this and let go again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import mlx.core as mx
import numpy as np

from ...image import Box, to_pixels
from ...layers.patches import Grid, patchified
from ...precision import compute_dtype
from ...vision.patches import PatchConfig, merged_grid, to_patches
from ...vision.qwen3 import Features, VisionConfig, encode_patches, open_tower, read_vision_config
from ..base import Prompt, ReferenceTokens
from .files import HiDreamFiles
from .references import Reference, prepared, sizes


@dataclass(frozen=True)
class EncodedReferences:
    shown: tuple[Grid, ...] = ()  # merged grids, as the prompt shows them
    grids: tuple[Grid, ...] = ()  # of the references' own patches
    patches: mx.array | None = None  # [1, R, C p p]
    features: Features | None = None


def encode_references(
    prompt: Prompt, size: tuple[int, int], files: HiDreamFiles, kept_side: int | None = None
) -> EncodedReferences:
    """`size`: width and height of the picture to make. `kept_side`: as `prepared` takes it."""
    if not prompt.references:
        return EncodedReferences()
    patch = files.config.patch.patch_size
    vision, cut = _vision_config(files)
    tower = open_tower(vision, files.weights)
    references = prepared(prompt.references, size, **_rules(prompt, files, vision, kept_side))
    pictures = [to_patches(reference.shown, cut) for reference in references]
    features = encode_patches(tower.load(), pictures, compute_dtype())
    tower.release()
    patches = mx.concatenate([_patches(reference, patch) for reference in references], axis=1)
    mx.eval(patches)
    return EncodedReferences(
        shown=tuple(picture.merged for picture in pictures),
        grids=tuple((reference.pixels.height // patch, reference.pixels.width // patch) for reference in references),
        patches=patches,
        features=features,
    )


def tokens_of(
    prompt: Prompt, size: tuple[int, int], files: HiDreamFiles, kept_side: int | None = None
) -> ReferenceTokens:
    """How many tokens `encode_references` will give, without looking at the pictures."""
    if not prompt.references:
        return ReferenceTokens()
    vision, cut = _vision_config(files)
    given = [picture.size for picture in prompt.references]
    found = sizes(given, size, **_rules(prompt, files, vision, kept_side))
    return ReferenceTokens(
        sum(math.prod(merged_grid(shown, cut)) for _, shown in found),
        sum(math.prod(read) for read, _ in found) // files.config.patch.patch_size**2,
    )


def _vision_config(files: HiDreamFiles) -> tuple[VisionConfig, PatchConfig]:
    folder = files.folder
    return read_vision_config(files.config.vision, folder / "config.json", folder, folder / "tokenizer")


class Rules(TypedDict):
    """How pictures are sized: the keywords of references.py."""

    patch: int
    shown_side: int
    shown_multiple: int
    boxes: Sequence[Box]
    kept_side: int | None


def _rules(prompt: Prompt, files: HiDreamFiles, vision: VisionConfig, kept_side: int | None) -> Rules:
    return {
        "patch": files.config.patch.patch_size,
        "shown_side": files.config.patch.condition_image_size,
        "shown_multiple": vision.patch_size * vision.spatial_merge_size,
        # As upstream: the reference that gives the picture its shape has all of it.
        "boxes": () if kept_side else dict(prompt.options).get("layout", ()),
        "kept_side": kept_side,
    }


def _patches(reference: Reference, patch: int) -> mx.array:
    """[1, R, C p p] in -1..1"""
    pixels = to_pixels(reference.pixels) * 2 - 1
    return patchified(mx.array(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None], patch)
