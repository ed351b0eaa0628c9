"""Qwen-Image-2.1's files on disk, opened and checked: a diffusers folder.

In: a folder. Out: `QwenImage21Files`, the configs and weights of every component, each tensor accounted for by name and
shape. `lm_head` is never read; the vision tower is checked when references are first given.
"""

from dataclasses import dataclass

import mlx.nn as nn

from ...autoencoders.qwen_image_21 import Decoder, Encoder, VaeConfig, unused_tensors
from ...errors import ConfigError
from ...layers.embed import Table
from ...loading.config import read_json
from ...text.qwen import HEAD, LanguageModel, QwenConfig, read_config
from ...vision.patches import PatchConfig
from ...vision.qwen3 import VISUAL, VisionConfig, read_vision_config
from ..folder import TABLE, DiffusersFolder, FolderFiles
from .config import QwenImage21Config
from .editing import Editing
from .modulation import QwenImage21Modulators
from .spec import SIGMAS
from .transformer import QwenImage21Transformer

LANGUAGE = "model.language_model"
UNUSED = (HEAD, f"{VISUAL}.")


@dataclass(frozen=True, kw_only=True)
class QwenImage21Files(FolderFiles):
    config: QwenImage21Config
    vae_config: VaeConfig
    vision: VisionConfig
    patches: PatchConfig
    editing: Editing
    sigmas: tuple[float, ...]  # the distilled model's own; empty in the other


def open_files(folder: DiffusersFolder) -> QwenImage21Files:
    config = folder.config("transformer", QwenImage21Config.read)
    text_config = folder.config("text_encoder", read_config)
    vision, patches = folder.config(
        "text_encoder",
        lambda data, where: read_vision_config(data.get("vision_config", {}), where, folder.path / "processor"),
    )
    vae_config = folder.config("vae", VaeConfig.read)
    folder.check_widths(
        "transformer",
        ("context_in_dim", config.context_in_dim, text_config.hidden_size, "text_encoder's hidden_size"),
        ("out_channels", config.out_channels, vae_config.z_dim, "vae's z_dim"),
        ("in_channels", config.in_channels, vae_config.z_dim, "vae's z_dim"),
    )
    table = Table(f"{LANGUAGE}.{TABLE}", text_config.vocab_size, text_config.hidden_size)
    return QwenImage21Files(
        config=config,
        text_config=text_config,
        vision=vision,
        patches=patches,
        editing=Editing.of(folder.manifest),
        vae_config=vae_config,
        scheduler=folder.scheduler(),
        sigmas=_own_sigmas(folder),
        transformer=folder.weights("transformer", [QwenImage21Transformer(config), QwenImage21Modulators(config)]),
        text=folder.weights("text_encoder", [Language(text_config), table], unused=UNUSED),
        text_path=LANGUAGE,
        vae=folder.weights("vae", [Encoder(vae_config), Decoder(vae_config)], unused=unused_tensors(vae_config)),
        tokenizer=folder.path / "processor",
    )


class Language(nn.Module):
    """The language model where it stands in the checkpoint's tree."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.model = {"language_model": LanguageModel(config)}


def _own_sigmas(folder: DiffusersFolder) -> tuple[float, ...]:
    path = folder.path / "model_index.json"
    own = read_json(path).get(SIGMAS) if path.is_file() else folder.manifest.extras.get(SIGMAS)
    try:
        sigmas = tuple(float(sigma) for sigma in own or ())
    except (TypeError, ValueError):
        sigmas = (0.0,)
    if any(not 0 < sigma <= 1 for sigma in sigmas):
        raise ConfigError(f"{path}: '{SIGMAS}' must be numbers above 0 and up to 1; take the file from the repository.")
    return sigmas
