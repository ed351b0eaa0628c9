"""HiDream-O1's config.json: a Qwen3-VL file, with a `hidream_o1` block of its own only in small models trained for
tests.

In: the file, the checkpoint's shapes, the tokenizer. Out: `HiDreamConfig`. The published repositories have no block:
the patch and the bottleneck are read off the tensors' shapes there, the tokens' ids off the tokenizer, and the three
numbers that upstream fixes in code stand here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ...errors import ConfigError
from ...loading.config import INDEX, POSITIVE, Config, Range
from ...loading.tensors import NamedTensors
from ...text.qwen import QwenConfig, read_config

CHANNELS = 3
PROJECTION = "model.x_embedder.proj1.weight"  # [bottleneck, channels * patch²]
TIMESTEP = "model.t_embedder1.mlp.0.weight"  # [hidden size, sinusoids]


@dataclass(frozen=True)
class PixelConfig(Config):
    """The `hidream_o1` block."""

    # Ids are taken by name from special_token_ids; the rule for references is part of the port.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"boi_token_id", "tms_token_id", "ref_max_size_rule"})

    patch_size: Annotated[int, Range(1, 256)]
    bottleneck_dim: int
    in_channels: int = CHANNELS
    timestep_freq_dim: int = 256
    # Where the target's positions begin on every axis, however long the text is.
    fix_point: Annotated[int, Range(0, 10**6)] = 4096
    t_eps: Annotated[float, POSITIVE] = 0.001  # the smallest sigma that a velocity is divided by
    condition_image_size: int = 384  # pixels a side, about, of a reference as the vision tower sees it
    noise_scale: Annotated[float, Range(1e-6, 100)] | None = None  # None: the manifest's
    special_token_ids: Annotated[dict[str, int], INDEX] | None = None


@dataclass(frozen=True)
class HiDreamConfig:
    text: QwenConfig
    vision: dict[str, Any]
    patch: PixelConfig
    image_token: int
    boi: int
    tms: int


def open_config(data: dict[str, Any], where: Path, tensors: NamedTensors, id_of: Callable[[str], int]) -> HiDreamConfig:
    block = data.get("hidream_o1")
    patch = _from_shapes(tensors, where) if block is None else PixelConfig.read(block, f"{where}, block 'hidream_o1'")
    ids = patch.special_token_ids or {}
    if not isinstance(data.get("vision_config"), dict) or not isinstance(data.get("image_token_id"), int):
        raise ConfigError(
            f"{where} lacks 'vision_config' or 'image_token_id'; take the file from the model's repository."
        )
    text = {name: value for name, value in data.items() if name != "hidream_o1"}
    return HiDreamConfig(
        text=read_config(text, where),
        vision=data["vision_config"],
        patch=patch,
        image_token=data["image_token_id"],
        boi=ids.get("<|boi_token|>") or id_of("<|boi_token|>"),
        tms=ids.get("<|tms_token|>") or id_of("<|tms_token|>"),
    )


def _from_shapes(tensors: NamedTensors, where: Path) -> PixelConfig:
    absent = [name for name in (PROJECTION, TIMESTEP) if name not in tensors.slices]
    if absent:
        raise ConfigError(
            f"{where.parent} is a Qwen3-VL checkpoint without '{absent[0]}': a language model that describes pictures, "
            "not HiDream-O1-Image, which has the same kind of config.json. Point to a HiDream-O1-Image folder."
        )
    bottleneck, values = tensors.shape(PROJECTION)
    patch = round((values / CHANNELS) ** 0.5)
    if CHANNELS * patch**2 != values:
        raise ConfigError(
            f"{where.parent}: '{PROJECTION}' takes {values} values, which is no square patch of {CHANNELS} channels."
        )
    return PixelConfig(patch_size=patch, bottleneck_dim=bottleneck, timestep_freq_dim=tensors.shape(TIMESTEP)[1])
