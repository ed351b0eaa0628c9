"""FLUX.2's files on disk, opened and checked: a diffusers folder, with Qwen3 (klein) or Mistral (dev) for the text.

In: a folder. Out: `Flux2Files`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass
from pathlib import Path

from ...autoencoders.flux2 import UNUSED, Decoder, Encoder, Flux2VaeConfig
from ...autoencoders.layouts import from_ldm
from ...hub.manifest import Manifest
from ...layers.embed import Table
from ...loading.config import read_json
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...sampling import FlowMatchConfig
from ...text.qwen import LanguageModel, QwenConfig, from_published, read_config, unread_tensors
from ..folder import check_widths, name_component, read_scheduler
from .config import Flux2Config
from .editing import Editing
from .keys import LAYOUT, STATES, UNREAD
from .modulation import Flux2Modulators
from .transformer import Flux2Transformer

TABLE = "embed_tokens.weight"
QUARTERS = 4


@dataclass(frozen=True)
class Flux2Files:
    config: Flux2Config
    text_config: QwenConfig
    vae_config: Flux2VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    editing: Editing
    keeps_references: bool  # their keys and values are computed once, at time 0

    @property
    def text_layers(self) -> tuple[int, ...]:
        return text_layers(self.text_config)


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> Flux2Files:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    data = {part: read_json(path) for part, path in paths.items()}
    config = Flux2Config.read(data["transformer"], paths["transformer"])
    text_config = read_config(data["text_encoder"], paths["text_encoder"])
    vae_config = Flux2VaeConfig.read(data["vae"], paths["vae"])
    features = STATES * text_config.hidden_size
    check_widths(
        paths["transformer"],
        (
            ("joint_attention_dim", config.joint_attention_dim, features, "width of text_encoder's states"),
            ("in_channels", config.in_channels, vae_config.cell_channels, "vae's width of a cell"),
        ),
    )
    layers = max(text_layers(text_config))
    table = Table(TABLE, text_config.vocab_size, text_config.hidden_size)
    return Flux2Files(
        config,
        text_config,
        vae_config,
        read_scheduler(folder, manifest),
        check_tensors(
            name_component(folder, "transformer", LAYOUT.rename),
            [Flux2Transformer(config), Flux2Modulators(config)],
            transforms=transforms,
        ),
        check_tensors(
            name_component(folder, "text_encoder", from_published),
            [LanguageModel(text_config, layers), table],
            (*unread_tensors(text_config, layers), *UNREAD),
            transforms=transforms,
        ),
        check_tensors(
            name_component(folder, "vae", from_ldm),
            [Encoder(vae_config), Decoder(vae_config)],
            UNUSED,
            transforms=transforms,
        ),
        folder / "tokenizer",
        Editing.of(manifest),
        bool(manifest.extras.get("keeps_references")),
    )


def text_layers(config: QwenConfig) -> tuple[int, ...]:
    """After which layers the text's states are taken: a quarter, half and three quarters of them (9, 18 and 27 of
    Qwen3's 36, 10, 20 and 30 of Mistral's 40)."""
    return tuple(config.num_hidden_layers * quarter // QUARTERS for quarter in range(1, STATES + 1))
