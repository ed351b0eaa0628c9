"""Qwen3-VL's vision tower, for editing: pictures -> features for the prompt, and deepstack features for its decoder.

The tower is mlx-vlm's, imported only when it is built (about a second, and it pulls transformers); the language
model's own image pass is not used: it would make the pixels' attention causal.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from ..loading.component import Component
from ..loading.config import HEADS, INDEX, LAYERS, Config, Range, read_json
from ..loading.weights import Weights, check_tensors
from ..precision import compute_dtype
from ..text.qwen import UNUSED
from .patches import PatchConfig, Patches

VISUAL = "model.visual"


@dataclass(frozen=True)
class VisionConfig(Config):
    """`vision_config` of config.json."""

    IGNORED: ClassVar[frozenset[str]] = UNUSED | {"rope_parameters"}

    depth: Annotated[int, LAYERS]
    hidden_size: int
    intermediate_size: int
    num_heads: Annotated[int, HEADS]
    out_hidden_size: int
    patch_size: Annotated[int, Range(1, 256)]
    spatial_merge_size: Annotated[int, Range(1, 64)]
    temporal_patch_size: Annotated[int, Range(1, 64)]
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[Annotated[int, INDEX], ...]
    in_channels: int = 3
    hidden_act: str = "gelu_pytorch_tanh"


class Features(NamedTuple):
    embeds: mx.array  # [merged patches, D], in place of the pictures' tokens
    deepstack: list[mx.array]  # the same shape, one for each of the decoder's first layers


def vision_tower(config: VisionConfig) -> nn.Module:
    """mlx-vlm's tower, empty; its modules carry the checkpoint's names."""
    from mlx_vlm.models.qwen3_vl.config import VisionConfig as TheirConfig
    from mlx_vlm.models.qwen3_vl.vision import VisionModel

    sizes = {name: value for name, value in asdict(config).items() if name != "hidden_act"}
    theirs = TheirConfig(model_type="qwen3_vl", **sizes)
    return VisionModel(theirs)


def open_tower(part: dict[str, Any], folder: Path, weights: Weights) -> tuple[Component, VisionConfig, PatchConfig]:
    """The tower, not yet loaded, every tensor checked, and how pictures are cut for it."""
    config, patches = read_vision_config(part, folder)
    root = nn.Module()
    root.model = nn.Module()
    root.model.visual = vision_tower(config)
    unused = ("lm_head.", "model.language_model.", "model.t_embedder1.", "model.x_embedder.", "model.final_layer2.")
    tower = check_tensors(weights, [root], unused, transforms=weights.transforms)
    return Component(tower, lambda: vision_tower(config), compute_dtype(), VISUAL), config, patches


def read_vision_config(part: dict[str, Any], folder: Path) -> tuple[VisionConfig, PatchConfig]:
    config = VisionConfig.read(part, f"{folder / 'config.json'}: vision_config")
    if config.hidden_act != "gelu_pytorch_tanh":
        raise ConfigError(
            f"{folder / 'config.json'}: vision_config's hidden_act '{config.hidden_act}' is not known here."
        )
    where = folder / "preprocessor_config.json"
    if not where.is_file() and (folder / "tokenizer" / where.name).is_file():
        where = folder / "tokenizer" / where.name
    return config, PatchConfig.read_part(read_json(where), where)


def encode_patches(tower: nn.Module, pictures: Sequence[Patches], dtype: mx.Dtype) -> Features:
    """Each picture for itself, their features one after another."""
    embeds, deepstack = [], []
    for picture in pictures:
        main, more = tower(mx.array(picture.values, dtype), mx.array([[1, *picture.grid]]))
        mx.eval(main, more)
        embeds.append(main)
        deepstack.append(more)
    return Features(mx.concatenate(embeds), [mx.concatenate(list(level)) for level in zip(*deepstack, strict=True)])
