"""FLUX.1's files on disk, opened and checked: a diffusers folder, or the original single file beside ae.safetensors.

In: a folder. Out: `FluxFiles`, the configs and weights of every component, each tensor accounted for by name and shape.
"""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..config import read_json
from ..errors import MissingFile
from ..folder import open_component, read_scheduler
from ..layers.embed import Table
from ..loading import Changes, Weights
from ..manifest import Manifest
from ..sampling import FlowMatchConfig
from ..text.clip import CLIPConfig, ClipTextModel
from ..text.t5 import T5Config, T5Encoder
from .config import FluxConfig
from .keys import from_clip, from_original, from_original_autoencoder, from_t5
from .modulation import FluxModulators
from .original import autoencoder_config, transformer_config
from .transformer import FluxTransformer
from .vae import Autoencoder, VaeConfig

CLIP_TABLE = "embeddings.token_embedding.weight"
T5_TABLE = "shared.weight"


@dataclass(frozen=True)
class FluxFiles:
    config: FluxConfig
    clip_config: CLIPConfig
    t5_config: T5Config
    vae_config: VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    clip: Weights
    t5: Weights
    vae: Weights
    tokenizer: Path
    tokenizer_2: Path


def open_files(folder: Path, manifest: Manifest, changes: Changes) -> FluxFiles:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    config, transformer = _open_transformer(folder, changes)
    vae_config, vae = _open_vae(folder, changes)
    clip_config = CLIPConfig.read(read_json(folder / "text_encoder/config.json"), folder / "text_encoder/config.json")
    t5_config = T5Config.read(read_json(folder / "text_encoder_2/config.json"), folder / "text_encoder_2/config.json")
    clip = open_component(folder, "text_encoder", changes, from_clip)
    t5 = open_component(folder, "text_encoder_2", changes, from_t5)
    transformer.check([FluxTransformer(config), FluxModulators(config)])
    vae.check([Autoencoder(vae_config)])
    clip.check([ClipTextModel(clip_config), Table(CLIP_TABLE, clip_config.vocab_size, clip_config.hidden_size)])
    t5.check([T5Encoder(t5_config), Table(T5_TABLE, t5_config.vocab_size, t5_config.d_model)])
    return FluxFiles(
        config, clip_config, t5_config, vae_config, read_scheduler(folder, manifest), transformer, clip, t5, vae,
        folder / "tokenizer", folder / "tokenizer_2",
    )  # fmt: skip


def _open_transformer(folder: Path, changes: Changes) -> tuple[FluxConfig, Weights]:
    path = folder / "transformer" / "config.json"
    if path.is_file():
        return FluxConfig.read(read_json(path), path), open_component(folder, "transformer", changes)
    file = _original(folder, "flux1*.safetensors", path)
    checkpoint = open_checkpoint(file)
    data = transformer_config(checkpoint)
    return FluxConfig.read(data, file), Weights.open("transformer", checkpoint, from_original, data, changes)


def _open_vae(folder: Path, changes: Changes) -> tuple[VaeConfig, Weights]:
    path = folder / "vae" / "config.json"
    if path.is_file():
        return VaeConfig.read(read_json(path), path), open_component(folder, "vae", changes)
    file = _original(folder, "ae*.safetensors", path)
    checkpoint = open_checkpoint(file)
    data = autoencoder_config(checkpoint)
    return VaeConfig.read(data, file), Weights.open("vae", checkpoint, from_original_autoencoder, data, changes)


def _original(folder: Path, pattern: str, config: Path) -> Path:
    files = sorted(folder.glob(pattern))
    if not files:
        raise MissingFile(
            f"{config} is not there, and neither is an original {pattern} in {folder}; the folder is incomplete."
        )
    return files[0]
