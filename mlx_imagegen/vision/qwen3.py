"""Qwen3-VL's vision tower, for editing: pictures -> features for the prompt, and deepstack features for its decoder.

The tower is mlx-vlm's, imported only when it is built (about a second, and it pulls transformers); the language
model's own image pass is not used: it would make the pixels' attention causal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..loading.component import Component
from ..loading.config import HEADS, INDEX, LAYERS, Config, Range
from ..loading.weights import Weights, check_tensors
from ..precision import compute_dtype
from ..text.qwen import UNUSED
from .patches import PatchConfig, Patches, read_patch_config
from .tower import check_has_tower

VISUAL = "model.visual"


@dataclass(frozen=True)
class VisionConfig(Config):
    """`vision_config` of config.json."""

    IGNORED: ClassVar[frozenset[str]] = UNUSED | {"rope_parameters"}
    ONLY: ClassVar[Mapping[str, object]] = {"hidden_act": "gelu_pytorch_tanh"}

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


def open_tower(
    config: VisionConfig, weights: Weights, build: Callable[[VisionConfig], nn.Module] = vision_tower
) -> Component:
    """The tower, not yet loaded, every tensor checked; what else the checkpoint holds is its family's to check.
    `build`: it, empty."""
    check_has_tower(weights, f"{VISUAL}.")
    root = nn.Module()
    root.model = nn.Module()
    root.model.visual = build(config)
    others = [name for name in weights.slices if not name.startswith(f"{VISUAL}.")]
    tower = check_tensors(weights, [root], others, transforms=weights.transforms)
    return Component(tower, lambda: build(config), compute_dtype(), VISUAL)


def read_vision_config(part: dict[str, Any], where: Path, *folders: Path) -> tuple[VisionConfig, PatchConfig]:
    """The tower's config, and how pictures are cut for it, from the first of `folders` that says so. `where`: the
    config.json that `part` is of."""
    config = VisionConfig.read(part, f"{where}: vision_config")
    patches = read_patch_config(*folders)
    patches.check_tower(config, folders[0], where)
    return config, patches


def encode_patches(tower: nn.Module, pictures: Sequence[Patches], dtype: mx.Dtype) -> Features:
    """Each picture for itself, their features one after another."""
    embeds, deepstack = [], []
    for picture in pictures:
        main, more = tower(mx.array(picture.values, dtype), mx.array([[1, *picture.grid]]))
        mx.eval(main, more)
        embeds.append(main)
        deepstack.append(more)
    return Features(mx.concatenate(embeds), [mx.concatenate(list(level)) for level in zip(*deepstack, strict=True)])


def placed(txt: mx.array, features: Features | None, places: Sequence[int]) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Embeddings [1, T, D] with the features at their places, and the deepstack features, zero elsewhere, [1, T, D]
    each; evaluated."""
    deepstack = []
    if features is not None:
        where = mx.array(list(places))
        txt[0, where] = features.embeds.astype(txt.dtype)
        for level in features.deepstack:
            deepstack.append(mx.zeros_like(txt))
            deepstack[-1][0, where] = level.astype(txt.dtype)
    mx.eval(txt, deepstack)
    return txt, tuple(deepstack)
