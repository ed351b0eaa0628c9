"""Qwen2.5-VL's vision tower, for editing: pictures -> patches as the tower takes them -> features, one a merged patch.

The tower itself is mlx-vlm's, imported only when it is built (seconds, and it pulls transformers). To check a
checkpoint and to plan a run its parameters' shapes are enough; they stand here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from ..escaping import quoted
from ..loading.config import HEADS, INDEX, LAYERS, Config, Range, read_table
from ..text.qwen import UNUSED
from .patches import Patches

VISION = "visual."  # how the tower's tensors begin in the checkpoint
Shapes = dict[str, tuple[int, ...]]

THETA = 10000.0  # mlx-vlm fixes the rope's base in code


@dataclass(frozen=True)
class VisionConfig(Config):
    """`vision_config` of text_encoder/config.json."""

    # in_chans and spatial_patch_size are older spellings; the others concern videos, training or other towers.
    IGNORED: ClassVar[frozenset[str]] = UNUSED | frozenset("in_chans spatial_patch_size tokens_per_second".split())
    ONLY: ClassVar[Mapping[str, object]] = {"hidden_act": "silu"}

    depth: Annotated[int, LAYERS]
    hidden_size: int
    intermediate_size: int
    num_heads: Annotated[int, HEADS]
    out_hidden_size: int
    patch_size: Annotated[int, Range(1, 256)]
    spatial_merge_size: Annotated[int, Range(1, 64)]
    temporal_patch_size: Annotated[int, Range(1, 64)]
    window_size: int
    fullatt_block_indexes: tuple[Annotated[int, INDEX], ...]
    in_channels: int = 3
    hidden_act: str = "silu"

    @classmethod
    def read_part(cls, data: dict[str, Any], where: Path) -> Self:
        if "vision_config" not in data:
            raise ConfigError(
                f"{where}: field 'vision_config' is missing, and editing needs the vision tower; download it again."
            )
        part = dict(read_table(data, "vision_config", where))
        theta = read_table(part, "rope_parameters", f"{where}: vision_config").get("rope_theta", THETA)
        part.pop("rope_parameters", None)
        if theta != THETA:
            raise ConfigError(
                f"{where}: vision_config's rope_theta {quoted(theta)} is not known here; Qwen2.5-VL has {THETA}."
            )
        return cls.read(part, f"{where}: vision_config")


def vision_tower(config: VisionConfig) -> nn.Module:
    """mlx-vlm's tower, empty, under the checkpoint's `visual.`."""
    from mlx_vlm.models.qwen2_5_vl.config import VisionConfig as TheirConfig
    from mlx_vlm.models.qwen2_5_vl.vision import VisionModel

    sizes = {name: value for name, value in asdict(config).items() if name != "hidden_act"}
    theirs = TheirConfig(model_type="qwen2_5_vl", **sizes)
    root = nn.Module()
    root[VISION.rstrip(".")] = VisionModel(theirs)
    return root


def vision_shapes(config: VisionConfig) -> nn.Module:
    """The tower's parameters, empty, by their names in the checkpoint."""
    dims, inner = config.hidden_size, config.intermediate_size
    merged, patch = dims * config.spatial_merge_size**2, (config.patch_size, config.patch_size)
    block = {
        "norm1": _norm(dims),
        "norm2": _norm(dims),
        "attn.qkv": _linear(dims, 3 * dims),
        "attn.proj": _linear(dims, dims),
        "mlp.gate_proj": _linear(dims, inner),
        "mlp.up_proj": _linear(dims, inner),
        "mlp.down_proj": _linear(inner, dims),
    }
    parts = {f"blocks.{index}.{name}": shapes for index in range(config.depth) for name, shapes in block.items()}
    parts["patch_embed.proj"] = {"weight": (dims, config.temporal_patch_size, *patch, config.in_channels)}
    parts |= {"merger.ln_q": _norm(dims), "merger.mlp.0": _linear(merged, merged)}
    parts["merger.mlp.2"] = _linear(merged, config.out_hidden_size)
    root = nn.Module()
    for part, shapes in parts.items():
        for name, shape in shapes.items():
            root[f"{VISION}{part}.{name}"] = mx.zeros(shape)
    return root


def _norm(dims: int) -> Shapes:
    return {"weight": (dims,)}


def _linear(inputs: int, outputs: int) -> Shapes:
    return {"weight": (outputs, inputs), "bias": (outputs,)}


def encode_patches(tower: nn.Module, patches: Patches, dtype: mx.Dtype) -> mx.array:
    """Features [merged rows x merged columns, D] of one picture, evaluated: one picture's activations at a time."""
    features: mx.array = tower.visual(mx.array(patches.values, dtype), mx.array([[1, *patches.grid]]))
    mx.eval(features)
    return features
