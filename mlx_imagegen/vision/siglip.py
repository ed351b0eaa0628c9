"""SigLIP's vision tower: a picture -> a vector a patch, for networks that read pictures as prompts.

In: pixels [B, H, W, 3], normed, at the tower's one size. Out: the last hidden state [B, patches, D], normed. The head
that pools it is not used here. mlx-vlm's copy is not exact: its last norm has another epsilon.
Must not know: files, families. Parameters carry the checkpoint's names without `vision_model.`.
"""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.encoder import EncoderLayer
from ..layers.norm import LayerNorm
from .tower import TowerConfig

UNUSED = ("head.",)  # how tensors begin that are not read


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(TowerConfig):
    """image_encoder/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "vision_use_head"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})


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
