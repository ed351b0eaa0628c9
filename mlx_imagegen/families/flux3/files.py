"""FLUX.3's files on disk, opened and checked: a folder of diffusers' modular pipeline, with Qwen3-VL for the text.

In: a folder. Out: `Flux3Files`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass
from pathlib import Path

from ...hub.manifest import Manifest
from ...loading.config import read_json
from ...loading.weights import WeightTransforms
from ..cell_files import CellFiles, open_cell_files
from .config import Flux3Config
from .editing import Editing
from .keys import LAYOUT, STATES, TRAINING, VISION
from .modulation import Flux3Modulators
from .transformer import Flux3Transformer

CELLS = ("in_channels", "cond_in_channels")


@dataclass(frozen=True, kw_only=True)
class Flux3Files(CellFiles):
    config: Flux3Config
    editing: Editing


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> Flux3Files:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    path = folder / "transformer/config.json"
    config = Flux3Config.read(read_json(path), path)
    trees = [Flux3Transformer(config), Flux3Modulators(config)]
    unread = TRAINING, VISION
    opened = open_cell_files(folder, manifest, transforms, config, trees, LAYOUT.rename, STATES, unread, CELLS)
    tokenizer = opened.tokenizer if opened.tokenizer.is_dir() else folder / "text_encoder"  # as published
    return Flux3Files(**opened.common() | {"editing": Editing.of(manifest), "tokenizer": tokenizer})
