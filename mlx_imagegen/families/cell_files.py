"""The files of models that run on FLUX.2's latents: what FLUX.2's and FLUX.3's folders have in common.

In: a folder. Out: `CellFiles`, the configs and weights of the text encoder and the autoencoder, each tensor accounted
for by name and shape; a family adds its transformer's.
Must not know: transformers' layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import mlx.nn as nn

from ..autoencoders.flux2 import UNUSED, Decoder, Encoder, Flux2VaeConfig
from ..autoencoders.layouts import from_ldm
from ..errors import ConfigError
from ..hub.manifest import Manifest
from ..layers.embed import Table
from ..loading.config import Config, read_json
from ..loading.names import Rename
from ..loading.weights import Weights, WeightTransforms, check_tensors
from ..sampling import FlowMatchConfig
from ..text.qwen import LanguageModel, QwenConfig, from_published, read_config, unread_tensors
from .folder import check_widths, name_component, read_scheduler

TABLE = "embed_tokens.weight"
AXES = 4  # of positions: time, row, column, place in the text or number of the reference


@dataclass(frozen=True, kw_only=True)
class CellConfig(Config):
    """What every such transformer/config.json has."""

    attention_head_dim: int
    axes_dims_rope: tuple[int, ...]
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: int
    num_layers: int
    num_single_layers: int
    rope_theta: float
    eps: float = 1e-6
    mlp_ratio: float = 3.0

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        axes = config.axes_dims_rope
        if len(axes) != AXES or sum(axes) != config.attention_head_dim or any(dims < 2 or dims % 2 for dims in axes):
            raise ConfigError(
                f"{where}: 'axes_dims_rope' {list(axes)} must be {AXES} even numbers that add up to "
                f"'attention_head_dim' {config.attention_head_dim}; take the file from the model's repository."
            )
        return config

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.inner_dim * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class CellFiles:
    config: CellConfig
    text_config: QwenConfig
    vae_config: Flux2VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    states: int  # of the text, taken after layers as far apart as possible

    @property
    def text_layers(self) -> tuple[int, ...]:
        """After which layers the text's states are taken: for three of them a quarter, half and three quarters (9, 18
        and 27 of Qwen3's 36), for eight each ninth."""
        return text_layers(self.text_config, self.states)

    def common(self) -> dict[str, Any]:
        """By field, for a family's own files."""
        return {item.name: getattr(self, item.name) for item in fields(CellFiles)}


def text_layers(config: QwenConfig, states: int) -> tuple[int, ...]:
    return tuple(config.num_hidden_layers * part // (states + 1) for part in range(1, states + 1))


def open_cell_files(
    folder: Path,
    manifest: Manifest,
    transforms: WeightTransforms,
    config: CellConfig,
    transformer: Sequence[nn.Module],
    rename: Rename,
    states: int,
    unread: tuple[Sequence[str], Sequence[str]] = ((), ()),
    cells: Iterable[str] = ("in_channels",),
) -> CellFiles:
    """`transformer`: its trees. `unread`: how the names of tensors begin that are left in the transformer's and in the
    text encoder's files. `cells`: the transformer's fields that must be as wide as a cell."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    text_config = read_config(read_json(paths["text_encoder"]), paths["text_encoder"])
    vae_config = Flux2VaeConfig.read(read_json(paths["vae"]), paths["vae"])
    features = states * text_config.hidden_size
    widths = [("joint_attention_dim", config.joint_attention_dim, features, "width of text_encoder's states")]
    widths += [(name, getattr(config, name), vae_config.cell_channels, "vae's width of a cell") for name in cells]
    check_widths(paths["transformer"], widths)
    layers = max(text_layers(text_config, states))
    in_transformer, in_text = unread
    return CellFiles(
        config=config,
        text_config=text_config,
        vae_config=vae_config,
        scheduler=read_scheduler(folder, manifest),
        transformer=check_tensors(
            name_component(folder, "transformer", rename), transformer, in_transformer, transforms=transforms
        ),
        text=check_tensors(
            name_component(folder, "text_encoder", from_published),
            [LanguageModel(text_config, layers), Table(TABLE, text_config.vocab_size, text_config.hidden_size)],
            (*unread_tensors(text_config, layers), *in_text),
            transforms=transforms,
        ),
        vae=check_tensors(
            name_component(folder, "vae", from_ldm),
            [Encoder(vae_config), Decoder(vae_config)],
            UNUSED,
            transforms=transforms,
        ),
        tokenizer=folder / "tokenizer",
        states=states,
    )
