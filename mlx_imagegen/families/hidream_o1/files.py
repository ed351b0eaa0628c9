"""HiDream-O1's files on disk, opened and checked: the repository's flat layout, everything next to config.json.

In: a folder. Out: `HiDreamFiles`, with every tensor accounted for by name and shape. `lm_head` is never read; the
vision tower only for editing, when `vision/qwen3.py` checks it.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from ...layers.embed import Table
from ...loading.checkpoint import open_checkpoint
from ...loading.config import read_json
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...text.tokenizer import Tokenizer, qwen_tokenizer
from ...vision.patches import PatchConfig
from ...vision.qwen3 import VisionConfig, read_vision_config
from ..folder import DiffusersFolder
from .config import HiDreamConfig, open_config
from .transformer import HiDreamTransformer

TABLE = "model.language_model.embed_tokens.weight"
VISION = "model.visual."
UNUSED = ("lm_head.", VISION)


@dataclass(frozen=True)
class HiDreamFiles:
    folder: Path
    config: HiDreamConfig
    weights: Weights
    tokenizer: Tokenizer
    kept_side: int  # by which a picture takes its shape from its one reference

    @functools.cached_property
    def vision(self) -> tuple[VisionConfig, PatchConfig]:
        """The tower's, for references alone."""
        return read_vision_config(
            self.config.vision, self.folder / "config.json", self.folder, self.folder / "tokenizer"
        )


def open_files(folder: DiffusersFolder) -> HiDreamFiles:
    path = folder.path
    where = path / "config.json"
    data = read_json(where)
    single = path / "model.safetensors"  # small models keep other tensors in the same folder
    checkpoint = open_checkpoint(single if single.is_file() else path)
    tensors = name_tensors("transformer", checkpoint, config=data)
    tokenizer = qwen_tokenizer(path / "tokenizer" if (path / "tokenizer").is_dir() else path)
    config = open_config(data, where, tensors, tokenizer.id_of)
    kept_side = folder.manifest.extras["sizes"]["reference_side"]
    return HiDreamFiles(path, config, check(config, tensors, folder.transforms), tokenizer, kept_side)


def check(config: HiDreamConfig, tensors: NamedTensors, transforms: WeightTransforms | None = None) -> Weights:
    table = Table(TABLE, config.text.vocab_size, config.text.hidden_size)
    return check_tensors(tensors, [Model(config), table], UNUSED, transforms=transforms)


class Model(nn.Module):
    """The transformer where it stands in the checkpoint's tree."""

    def __init__(self, config: HiDreamConfig):
        super().__init__()
        self.model = HiDreamTransformer(config)
