"""FLUX.2's files on disk, opened and checked: a diffusers folder, with Qwen3 (klein) or Mistral (dev) for the text.

In: a folder. Out: `Flux2Files`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass

from ..cell_files import CellFiles, cell_files
from ..editing import Editing
from ..folder import DiffusersFolder
from .config import Flux2Config
from .keys import LAYOUT, STATES, UNREAD
from .modulation import Flux2Modulators
from .transformer import Flux2Transformer


@dataclass(frozen=True, kw_only=True)
class Flux2Files(CellFiles):
    config: Flux2Config
    editing: Editing
    keeps_references: bool  # their keys and values are computed once, at time 0


def open_files(folder: DiffusersFolder) -> Flux2Files:
    config = folder.config("transformer", Flux2Config.read)
    trees = [Flux2Transformer(config), Flux2Modulators(config)]
    return Flux2Files(
        **cell_files(folder, config, trees, LAYOUT.rename, STATES, ((), UNREAD)),
        editing=Editing.of(folder.manifest),
        keeps_references=bool(folder.manifest.extras.get("keeps_references")),
    )
