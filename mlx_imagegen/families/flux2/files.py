"""FLUX.2's files on disk, opened and checked: a diffusers folder, with Qwen3 (klein) or Mistral (dev) for the text.

In: a folder. Out: `Flux2Files`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass
from pathlib import Path

from ...hub.manifest import Manifest
from ...loading.config import read_json
from ...loading.weights import WeightTransforms
from ..cell_files import CellFiles, open_cell_files
from ..editing import Editing
from .config import Flux2Config
from .keys import LAYOUT, STATES, UNREAD
from .modulation import Flux2Modulators
from .transformer import Flux2Transformer


@dataclass(frozen=True, kw_only=True)
class Flux2Files(CellFiles):
    config: Flux2Config
    editing: Editing
    keeps_references: bool  # their keys and values are computed once, at time 0


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> Flux2Files:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    path = folder / "transformer/config.json"
    config = Flux2Config.read(read_json(path), path)
    trees = [Flux2Transformer(config), Flux2Modulators(config)]
    opened = open_cell_files(folder, manifest, transforms, config, trees, LAYOUT.rename, STATES, ((), UNREAD))
    keeps = bool(manifest.extras.get("keeps_references"))
    return Flux2Files(**opened.common() | {"editing": Editing.of(manifest), "keeps_references": keeps})
