"""An unfinished picture from its latents by linear factors: composition and colours, without the decoder.

In: the model's present idea of the picture as latents, the factors that its manifest names (weights/latent_rgb/).
Out: a picture of the finished one's size. Must not know: models, when a preview is wanted.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .hub.manifest import Manifest, data_folder
from .loading.config import read_json

FAST, FULL = "fast", "full"  # by factors; by the decoder


@dataclass(frozen=True)
class LatentColours:
    """Latents [C] -> red, green and blue in -1..1."""

    factors: np.ndarray  # [C, 3]
    bias: np.ndarray  # [3]

    def picture(self, latents: np.ndarray, size: tuple[int, int]) -> Image.Image:
        """latents [C, h, w] -> a picture of `size`, (width, height)"""
        colours = np.einsum("chw,ck->hwk", latents, self.factors) + self.bias
        levels = np.clip((colours + 1) / 2, 0, 1) * 255
        small = Image.fromarray(np.nan_to_num(levels).round().astype(np.uint8))
        return small.resize(size, Image.Resampling.BILINEAR)


def latent_colours(manifest: Manifest, channels: int) -> LatentColours | None:
    """None where the manifest names none, or the open model has latents of another kind."""
    name = manifest.extras.get("latent_rgb")
    if name is None:
        return None
    data = read_json(data_folder("weights") / "latent_rgb" / f"{name}.json")
    factors = np.asarray(data["factors"], np.float32)
    return LatentColours(factors, np.asarray(data["bias"], np.float32)) if len(factors) == channels else None
