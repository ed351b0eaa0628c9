"""An unfinished picture from its latents, without the model's decoder.

By linear factors that its manifest names (weights/latent_rgb/): composition and colours. Or by a tiny decoder that its
manifest names, where the user's cache has it: nothing is downloaded for a preview.
In: the model's present idea of the picture as latents. Out: a picture of the finished one's size. Must not know:
models, when a preview is wanted.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .autoencoders.tiny import TinyDecoder, open_tiny_decoder
from .errors import RequestError
from .hub.manifest import Manifest, data_folder
from .hub.snapshots import cache_folder, cached
from .loading.config import read_json

FAST, TINY, FULL = "fast", "tiny", "full"  # by factors; by a tiny decoder; by the model's own


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


def tiny_file(manifest: Manifest) -> Path:
    """Of the tiny decoder in the cache."""
    name: str | None = manifest.extras.get("tiny_autoencoder")
    if name is None:
        raise RequestError(f"preview {TINY!r}: no tiny decoder is known for {manifest.name}; give {FAST} or {FULL}.")
    repo, _, file = name.rpartition("/")
    folder = cached(cache_folder(), repo, "main")
    path = None if folder is None else folder / file
    if path is None or not path.is_file():
        raise RequestError(
            f"preview {TINY!r}: {repo} is not in {cache_folder()}; `hf download {repo} {file}` fetches it, or give "
            f"{FAST} or {FULL}."
        )
    return path


@functools.lru_cache(maxsize=1)
def tiny_decoder(path: Path, channels: int) -> TinyDecoder:
    """Kept, and evaluated: whatever thread asks for the next preview."""
    return open_tiny_decoder(path, channels)
