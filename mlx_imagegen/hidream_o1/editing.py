"""What HiDream-O1 takes from reference pictures: patches to attend to, and what the vision tower sees in them.

In: a `Prompt` with references. Out: `Seen`. The tower is loaded for this and let go again; prompts with the same
pictures (a prompt and its negative, a picture's next seed) share what was seen.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..family import Prompt, Settings
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


class Sight:
    """Keeps the latest pictures' features."""

    def __init__(self, files: HiDreamFiles, kept_side: int):
        self._files = files
        self._kept_side = kept_side
        self._latest: tuple[Hashable, Seen] = (None, Seen())

    def forget(self) -> None:
        self._latest = (None, Seen())

    def see(self, prompt: Prompt, settings: Settings) -> Seen:
        if not prompt.references:
            return Seen()
        keep = settings.extras.get("keep_original_aspect", False)
        key = (replace(prompt, text="").key, settings.width, settings.height, keep)
        if self._latest[0] != key:
            self._latest = key, self._seen(prompt, settings, keep)
        return self._latest[1]

    def _seen(self, prompt: Prompt, settings: Settings, keep: bool) -> Seen:
        files = self._files
        patch = files.config.patch.patch_size
        tower, vision, cut = open_tower(files.config.vision, files.folder, files.weights)
        references = prepared(
            prompt.references,
            (settings.width, settings.height),
            patch=patch,
            shown_side=files.config.patch.condition_image_size,
            shown_multiple=vision.patch_size * vision.spatial_merge_size,
            boxes=dict(prompt.options).get("layout", ()),
            kept_side=self._kept_side if keep else None,
        )
        pictures = [to_patches(reference.shown, cut) for reference in references]
        features = see(tower.load(), pictures, compute_dtype())
        tower.release()
        return Seen(
            shown=tuple(picture.merged for picture in pictures),
            grids=tuple(
                (reference.pixels.height // patch, reference.pixels.width // patch) for reference in references
            ),
            patches=mx.concatenate([_patches(reference, patch) for reference in references], axis=1),
            features=features,
        )


def _patches(reference: Reference, patch: int) -> mx.array:
    """[1, R, C p p] in -1..1"""
    pixels = to_pixels(reference.pixels) * 2 - 1
    return patchified(mx.array(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None], patch)
