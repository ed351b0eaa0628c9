"""Z-Image's files on disk, opened and checked: a diffusers folder.

In: a folder. Out: `ZImageFiles`, the configs and weights of every component, each tensor accounted for by name and
shape. The Omni edition has a vision tower next to the others.
"""

from dataclasses import dataclass

import mlx.nn as nn

from ...autoencoders.kl import Autoencoder, VaeConfig
from ...errors import ConfigError
from ...text.qwen import read_config
from ..folder import DiffusersFolder, FolderFiles
from .config import ZImageConfig
from .keys import from_comfyui
from .modulation import ZImageModulators
from .references import ReferenceFiles, open_reference_files
from .spec import OMNI_PIPELINE
from .transformer import PromptRefiner, ReferenceRefiner, ZImageTransformer


@dataclass(frozen=True, kw_only=True)
class ZImageFiles(FolderFiles):
    config: ZImageConfig
    vae_config: VaeConfig
    text_depth: int  # the last layer need not be loaded
    references: ReferenceFiles | None  # the Omni edition's


def open_files(folder: DiffusersFolder) -> ZImageFiles:
    config = folder.config("transformer", ZImageConfig.read)
    text_config = folder.config("text_encoder", read_config)
    vae_config = folder.config("vae", VaeConfig.read)
    folder.check_widths(
        "transformer",
        ("cap_feat_dim", config.cap_feat_dim, text_config.hidden_size, "text_encoder's hidden_size"),
        ("in_channels", config.in_channels, vae_config.latent_channels, "vae's latent_channels"),
    )
    if folder.manifest.edits and not config.is_omni:
        raise ConfigError(
            f"{folder.where('transformer')}: field 'siglip_feat_dim' is not set, and model_index.json says "
            f"{OMNI_PIPELINE}: the files are of different models. Take them from one repository."
        )
    trees: list[nn.Module] = [ZImageTransformer(config), PromptRefiner(config), ZImageModulators(config)]
    trees += [ReferenceRefiner(config)] if config.is_omni else []
    return ZImageFiles(
        config=config,
        text_config=text_config,
        vae_config=vae_config,
        scheduler=folder.scheduler(),
        transformer=folder.weights("transformer", trees, from_comfyui),
        text=folder.language_model(text_config),
        text_depth=text_config.num_hidden_layers - 1,
        vae=folder.weights("vae", [Autoencoder(vae_config)]),
        tokenizer=folder.path / "tokenizer",
        references=open_reference_files(folder, config) if config.is_omni else None,
    )
