"""SigLIP's vision tower: a picture -> a vector a patch, for networks that read pictures as prompts.

In: pixels [B, H, W, 3], normed, at the tower's one size. Out: the last hidden state [B, patches, D], normed. The head
that pools it is not used here. mlx-vlm's copy is not exact: its last norm has another epsilon.
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from ..layers.encoder import ACTIVATIONS, EncoderLayer
from ..layers.norm import LayerNorm
from ..loading.config import COLOURS, HEADS, LAYERS, POSITIVE, Config, Range
from ..loading.names import RowRange

UNUSED = ("head.",)  # how tensors begin that are not read


@dataclass(frozen=True)
class SiglipConfig(Config):
    """image_encoder/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "vision_use_head"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})

    hidden_act: str
    hidden_size: int
    image_size: Annotated[int, Range(1, 4096)]
    intermediate_size: int
    layer_norm_eps: Annotated[float, POSITIVE]
    num_attention_heads: Annotated[int, HEADS]
    num_hidden_layers: Annotated[int, LAYERS]
    patch_size: Annotated[int, Range(1, 256)]
    num_channels: Annotated[int, COLOURS] = 3

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        sound = {
            "hidden_act": config.hidden_act in ACTIVATIONS,
            "hidden_size": config.hidden_size % config.num_attention_heads == 0,
            "patch_size": config.patch_size <= config.image_size,
        }
        if odd := next((name for name, fits in sound.items() if not fits), None):
            raise ConfigError(
                f"{where}: field '{odd}' is {getattr(config, odd)}, which is not known or does not fit the others; "
                "take the file from the model's repository."
            )
        return config

    @property
    def patches(self) -> int:
        """Of a picture."""
        return (self.image_size // self.patch_size) ** 2


class SiglipVisionModel(nn.Module):
    def __init__(self, config: SiglipConfig):
        super().__init__()
        dims, patch = config.hidden_size, config.patch_size
        self.embeddings = {
            "patch_embedding": nn.Conv2d(config.num_channels, dims, patch, patch),
            "position_embedding": nn.Embedding(config.patches, dims),
        }
        layer = dims, config.intermediate_size, config.num_attention_heads
        kind = config.layer_norm_eps, config.hidden_act
        self.encoder = {"layers": [EncoderLayer(*layer, *kind) for _ in range(config.num_hidden_layers)]}
        self.post_layernorm = LayerNorm(dims, config.layer_norm_eps)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings["patch_embedding"](pixels)  # [B, rows, columns, D]
        x = x.flatten(1, 2) + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.post_layernorm(x)


def from_siglip(name: str) -> Iterable[RowRange]:
    """As published (`vision_model.` before every name), or as newer transformers saves it (without)."""
    yield RowRange(name.removeprefix("vision_model."))
