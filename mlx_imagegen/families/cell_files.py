"""The files of models that run on FLUX.2's latents: what FLUX.2's and FLUX.3's folders have in common.

In: a folder. Out: `CellFiles`, the configs and weights of the text encoder and the autoencoder, each tensor accounted
for by name and shape; a family adds its transformer's.
Must not know: transformers' layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.nn as nn

from ..autoencoders.flux2 import UNUSED, Decoder, Encoder, Flux2VaeConfig
from ..autoencoders.layouts import from_ldm
from ..loading.names import Rename
from ..text.qwen import QwenConfig, read_config
from .folder import DiffusersFolder, FolderFiles
from .transformer_config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class CellConfig(TransformerConfig):
    """What every such transformer/config.json has. Axes: time, row, column, place in the text or number of the
    reference."""

    AXES: ClassVar[int] = 4

    joint_attention_dim: int
    num_single_layers: int
    rope_theta: float
    eps: float = 1e-6
    mlp_ratio: float = 3.0

    @property
    def mlp_dim(self) -> int:
        return int(self.inner_dim * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class CellFiles(FolderFiles):
    config: CellConfig
    vae_config: Flux2VaeConfig
    states: int  # of the text, taken after layers as far apart as possible

    @property
    def text_layers(self) -> tuple[int, ...]:
        """After which layers the text's states are taken: for three of them a quarter, half and three quarters (9, 18
        and 27 of Qwen3's 36), for eight each ninth."""
        return text_layers(self.text_config, self.states)


def text_layers(config: QwenConfig, states: int) -> tuple[int, ...]:
    return tuple(config.num_hidden_layers * part // (states + 1) for part in range(1, states + 1))


def cell_files(
    folder: DiffusersFolder,
    config: CellConfig,
    transformer: Sequence[nn.Module],
    rename: Rename,
    states: int,
    unread: tuple[Sequence[str], Sequence[str]] = ((), ()),
    cells: Iterable[str] = ("in_channels",),
) -> dict[str, Any]:
    """The fields of `CellFiles`. `transformer`: its trees. `unread`: how the names of tensors begin that are left in
    the transformer's and in the text encoder's files. `cells`: the transformer's fields that must be as wide as a
    cell."""
    text_config = folder.config("text_encoder", read_config)
    vae_config = folder.config("vae", Flux2VaeConfig.read)
    features = states * text_config.hidden_size
    folder.check_widths(
        "transformer",
        ("joint_attention_dim", config.joint_attention_dim, features, "width of text_encoder's states"),
        *((name, getattr(config, name), vae_config.cell_channels, "vae's width of a cell") for name in cells),
    )
    depth = max(text_layers(text_config, states))
    return {
        "config": config,
        "text_config": text_config,
        "vae_config": vae_config,
        "scheduler": folder.scheduler(),
        "transformer": folder.weights("transformer", transformer, rename, unread[0]),
        "text": folder.language_model(text_config, depth, unused=unread[1]),
        "text_depth": depth,
        "vae": folder.weights("vae", [Encoder(vae_config), Decoder(vae_config)], from_ldm, UNUSED),
        "tokenizer": folder.path / "tokenizer",
        "states": states,
    }
