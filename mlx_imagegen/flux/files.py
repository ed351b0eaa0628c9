"""FLUX.1's files on disk, opened and checked: a diffusers folder, or the original single file beside ae.safetensors.

In: a folder. Out: `FluxFiles`, the configs and weights of every component, each tensor accounted for by name and shape.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..checkpoint import open_checkpoint
from ..config import read_json
from ..errors import ConfigError, MissingFile
from ..keys import Rename, same_names
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
    clip = _open(folder, "text_encoder", from_clip, changes)
    t5 = _open(folder, "text_encoder_2", from_t5, changes)
    transformer.check([FluxTransformer(config), FluxModulators(config)])
    vae.check([Autoencoder(vae_config)])
    clip.check([ClipTextModel(clip_config), Table(CLIP_TABLE, clip_config.vocab_size, clip_config.hidden_size)])
    t5.check([T5Encoder(t5_config), Table(T5_TABLE, t5_config.vocab_size, t5_config.d_model)])
    return FluxFiles(
        config, clip_config, t5_config, vae_config, _scheduler(folder, manifest), transformer, clip, t5, vae,
        folder / "tokenizer", folder / "tokenizer_2",
    )  # fmt: skip


def _open(folder: Path, component: str, rename: Rename, changes: Changes) -> Weights:
    config = read_json(folder / component / "config.json")
    return Weights.open(component, open_checkpoint(folder / component), rename, config, changes)


def _open_transformer(folder: Path, changes: Changes) -> tuple[FluxConfig, Weights]:
    path = folder / "transformer" / "config.json"
    if path.is_file():
        return FluxConfig.read(read_json(path), path), _open(folder, "transformer", same_names, changes)
    file = _original(folder, "flux1*.safetensors", path)
    checkpoint = open_checkpoint(file)
    config = FluxConfig.read(transformer_config(checkpoint), file)
    return config, Weights.open("transformer", checkpoint, from_original, None, changes)


def _open_vae(folder: Path, changes: Changes) -> tuple[VaeConfig, Weights]:
    path = folder / "vae" / "config.json"
    if path.is_file():
        return VaeConfig.read(read_json(path), path), _open(folder, "vae", same_names, changes)
    file = _original(folder, "ae*.safetensors", path)
    checkpoint = open_checkpoint(file)
    config = VaeConfig.read(autoencoder_config(checkpoint), file)
    return config, Weights.open("vae", checkpoint, from_original_autoencoder, None, changes)


def _original(folder: Path, pattern: str, config: Path) -> Path:
    files = sorted(folder.glob(pattern))
    if not files:
        raise MissingFile(f"{config} is not there, and neither is an original {pattern} in {folder}; the folder is incomplete.")
    return files[0]


def _scheduler(folder: Path, manifest: Manifest) -> FlowMatchConfig:
    path = folder / "scheduler" / "scheduler_config.json"
    if path.is_file():
        return FlowMatchConfig.read(read_json(path), path)
    published: Any = manifest.extras.get("scheduler")
    if not published:
        raise MissingFile(f"{path} is not there; download it from the model's repository.")
    return FlowMatchConfig.read(published, f"weights/{manifest.name}.toml")
