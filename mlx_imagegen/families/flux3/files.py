"""FLUX.3's files on disk, opened and checked: a folder of diffusers' modular pipeline, with Qwen3-VL for the text.

In: a folder. Out: `Flux3Files`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass

from ..cell_files import CellFiles, cell_files
from ..folder import DiffusersFolder
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


def open_files(folder: DiffusersFolder) -> Flux3Files:
    config = folder.config("transformer", Flux3Config.read)
    trees = [Flux3Transformer(config), Flux3Modulators(config)]
    opened = cell_files(folder, config, trees, LAYOUT.rename, STATES, (TRAINING, VISION), CELLS)
    if not opened["tokenizer"].is_dir():  # as published
        opened["tokenizer"] = folder.path / "text_encoder"
    return Flux3Files(**opened, editing=Editing.of(folder.manifest))
