"""FLUX.3's files on disk, opened and checked: a folder of diffusers' modular pipeline, with Qwen3-VL for the text.

In: a folder. Out: `Flux3Files`, the configs and weights of every component, each tensor accounted for by name and
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
from .config import Flux3Config
from .editing import Editing
from .keys import LAYOUT, STATES, TRAINING, VISION
from .modulation import Flux3Modulators
from .transformer import Flux3Transformer

TABLE = "embed_tokens.weight"
NINTHS = 9


@dataclass(frozen=True)
class Flux3Files:
    config: Flux3Config
    text_config: QwenConfig
    vae_config: Flux2VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    editing: Editing

    @property
    def text_layers(self) -> tuple[int, ...]:
        return text_layers(self.text_config)


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> Flux3Files:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    data = {part: read_json(path) for part, path in paths.items()}
    config = Flux3Config.read(data["transformer"], paths["transformer"])
    text_config = read_config(data["text_encoder"], paths["text_encoder"])
    vae_config = Flux2VaeConfig.read(data["vae"], paths["vae"])
    features = STATES * text_config.hidden_size
    check_widths(
        paths["transformer"],
        (
            ("joint_attention_dim", config.joint_attention_dim, features, "width of text_encoder's states"),
            ("in_channels", config.in_channels, vae_config.cell_channels, "vae's width of a cell"),
            ("cond_in_channels", config.cond_in_channels, vae_config.cell_channels, "vae's width of a cell"),
        ),
    )
    layers = max(text_layers(text_config))
    table = Table(TABLE, text_config.vocab_size, text_config.hidden_size)
    tokenizer = folder / "tokenizer"
    return Flux3Files(
        config,
        text_config,
        vae_config,
        read_scheduler(folder, manifest),
        check_tensors(
            name_component(folder, "transformer", LAYOUT.rename),
            [Flux3Transformer(config), Flux3Modulators(config)],
            TRAINING,
            transforms=transforms,
        ),
        check_tensors(
            name_component(folder, "text_encoder", from_published),
            [LanguageModel(text_config, layers), table],
            (*unread_tensors(text_config, layers), *VISION),
            transforms=transforms,
        ),
        check_tensors(
            name_component(folder, "vae", from_ldm),
            [Encoder(vae_config), Decoder(vae_config)],
            UNUSED,
            transforms=transforms,
        ),
        tokenizer if tokenizer.is_dir() else folder / "text_encoder",  # where the published folders have it
        Editing.of(manifest),
    )


def text_layers(config: QwenConfig) -> tuple[int, ...]:
    """After which layers the text's states are taken: eight, a ninth of them apart (4, 8, … 32 of Qwen3-VL's 36)."""
    return tuple(config.num_hidden_layers * ninth // NINTHS for ninth in range(1, STATES + 1))
