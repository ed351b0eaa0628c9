"""Qwen-Image-2.1's files on disk, opened and checked: a diffusers folder.

In: a folder. Out: `QwenImage21Files`, the configs and weights of every component, each tensor accounted for by name and
shape. `lm_head` is never read; the vision tower is checked when references are first given.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from ...autoencoders.qwen_image_21 import Decoder, Encoder, VaeConfig, unused_tensors
from ...errors import ConfigError
from ...hub.manifest import Manifest
from ...layers.embed import Table
from ...loading.config import read_json
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...sampling import FlowMatchConfig
from ...text.qwen import LanguageModel, QwenConfig, read_config
from ...vision.patches import PatchConfig
from ...vision.qwen3 import VISUAL, VisionConfig, read_vision_config
from ..folder import name_component, read_scheduler
from .config import QwenImage21Config
from .modulation import QwenImage21Modulators
from .spec import SIGMAS
from .transformer import QwenImage21Transformer

LANGUAGE = "model.language_model"
TABLE = f"{LANGUAGE}.embed_tokens.weight"
UNUSED = ("lm_head.", f"{VISUAL}.")


@dataclass(frozen=True)
class QwenImage21Files:
    config: QwenImage21Config
    text_config: QwenConfig
    vision: VisionConfig
    patches: PatchConfig
    vae_config: VaeConfig
    scheduler: FlowMatchConfig
    sigmas: tuple[float, ...]  # the distilled model's own; empty in the other
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> QwenImage21Files:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    data = {part: read_json(path) for part, path in paths.items()}
    config = QwenImage21Config.read(data["transformer"], paths["transformer"])
    trees = [QwenImage21Transformer(config), QwenImage21Modulators(config)]
    transformer = check_tensors(name_component(folder, "transformer"), trees, transforms=transforms)
    text_config = read_config(data["text_encoder"], paths["text_encoder"])
    trees = [Language(text_config), Table(TABLE, text_config.vocab_size, text_config.hidden_size)]
    text = check_tensors(name_component(folder, "text_encoder"), trees, UNUSED, transforms=transforms)
    vision = read_vision_config(
        data["text_encoder"].get("vision_config", {}), paths["text_encoder"], folder / "processor"
    )
    vae_config = VaeConfig.read(data["vae"], paths["vae"])
    trees = [Encoder(vae_config), Decoder(vae_config)]
    vae = check_tensors(name_component(folder, "vae"), trees, unused_tensors(vae_config), transforms=transforms)
    _check_widths(config, text_config, vae_config, folder)
    scheduler, sigmas = read_scheduler(folder, manifest), _own_sigmas(folder, manifest)
    return QwenImage21Files(
        config, text_config, *vision, vae_config, scheduler, sigmas, transformer, text, vae, folder / "processor"
    )


class Language(nn.Module):
    """The language model where it stands in the checkpoint's tree."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.model = {"language_model": LanguageModel(config)}


def _own_sigmas(folder: Path, manifest: Manifest) -> tuple[float, ...]:
    path = folder / "model_index.json"
    own = read_json(path).get(SIGMAS) if path.is_file() else manifest.extras.get(SIGMAS)
    try:
        sigmas = tuple(float(sigma) for sigma in own or ())
    except (TypeError, ValueError):
        sigmas = (0.0,)
    if any(not 0 < sigma <= 1 for sigma in sigmas):
        raise ConfigError(f"{path}: '{SIGMAS}' must be numbers above 0 and up to 1; take the file from the repository.")
    return sigmas


def _check_widths(config: QwenImage21Config, text: QwenConfig, vae: VaeConfig, folder: Path) -> None:
    """The parts must hand on what the next one takes: a folder may be put together from several."""
    for field, found, expected, other in (
        ("context_in_dim", config.context_in_dim, text.hidden_size, "text_encoder's hidden_size"),
        ("out_channels", config.out_channels, vae.z_dim, "vae's z_dim"),
        ("in_channels", config.in_channels, vae.z_dim, "vae's z_dim"),
    ):
        if found != expected:
            raise ConfigError(
                f"{folder}: the transformer's '{field}' is {found}, but the {other} is {expected}: the parts of this "
                "folder are of different models. Take them from one repository."
            )
