"""HiDream-O1's files on disk, opened and checked: the repository's flat layout, everything next to config.json.

In: a folder. Out: `HiDreamFiles`, with every tensor accounted for by name and shape. `lm_head` is never read; the
vision tower only for editing, when `vision.py` checks it.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from ...layers.embed import Table
from ...loading.checkpoint import open_checkpoint
from ...loading.config import read_json
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...text.tokenizer import Tokenizer, qwen_tokenizer
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


def open_files(folder: Path, transforms: WeightTransforms) -> HiDreamFiles:
    """Reads config and headers, and checks every tensor's name and shape; no weights are read."""
    where = folder / "config.json"
    data = read_json(where)
    single = folder / "model.safetensors"  # small models keep other tensors in the same folder
    checkpoint = open_checkpoint(single if single.is_file() else folder)
    tensors = name_tensors("transformer", checkpoint, config=data)
    tokenizer = qwen_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    config = open_config(data, where, tensors, tokenizer.id_of)
    return HiDreamFiles(folder, config, check(config, tensors, transforms), tokenizer)


def check(config: HiDreamConfig, tensors: NamedTensors, transforms: WeightTransforms | None = None) -> Weights:
    table = Table(TABLE, config.text.vocab_size, config.text.hidden_size)
    return check_tensors(tensors, [Model(config), table], UNUSED, transforms=transforms)


class Model(nn.Module):
    """The transformer where it stands in the checkpoint's tree."""

    def __init__(self, config: HiDreamConfig):
        super().__init__()
        self.model = HiDreamTransformer(config)
