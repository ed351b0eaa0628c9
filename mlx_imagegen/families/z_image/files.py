"""Z-Image's files on disk, opened and checked: a diffusers folder.

In: a folder. Out: `ZImageFiles`, the configs and weights of every component, each tensor accounted for by name and
shape. The Omni edition has a vision tower next to the others.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from ...autoencoders.kl import Autoencoder, VaeConfig
from ...errors import ConfigError
from ...hub.manifest import Manifest
from ...layers.embed import Table
from ...loading.config import read_json
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...sampling import FlowMatchConfig
from ...text.qwen import HEAD, LanguageModel, QwenConfig, from_published, read_config
from ..folder import check_widths, name_component, read_scheduler
from .config import ZImageConfig
from .keys import from_comfyui
from .modulation import ZImageModulators
from .references import ReferenceFiles, open_reference_files
from .spec import OMNI_PIPELINE
from .transformer import PromptRefiner, ReferenceRefiner, ZImageTransformer

TABLE = "embed_tokens.weight"


@dataclass(frozen=True)
class ZImageFiles:
    config: ZImageConfig
    text_config: QwenConfig
    vae_config: VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    references: ReferenceFiles | None  # the Omni edition's

    @property
    def text_layer(self) -> int:
        """After which layer the text's states are taken; the last one need not be loaded."""
        return self.text_config.num_hidden_layers - 1


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> ZImageFiles:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    data = {part: read_json(path) for part, path in paths.items()}
    config = ZImageConfig.read(data["transformer"], paths["transformer"])
    text_config = read_config(data["text_encoder"], paths["text_encoder"])
    vae_config = VaeConfig.read(data["vae"], paths["vae"])
    check_widths(
        paths["transformer"],
        (
            ("cap_feat_dim", config.cap_feat_dim, text_config.hidden_size, "text_encoder's hidden_size"),
            ("in_channels", config.in_channels, vae_config.latent_channels, "vae's latent_channels"),
        ),
    )
    if manifest.edits and not config.is_omni:
        raise ConfigError(
            f"{paths['transformer']}: field 'siglip_feat_dim' is not set, and model_index.json says {OMNI_PIPELINE}: "
            "the files are of different models. Take them from one repository."
        )
    trees: list[nn.Module] = [ZImageTransformer(config), PromptRefiner(config), ZImageModulators(config)]
    trees += [ReferenceRefiner(config)] if config.is_omni else []
    transformer = check_tensors(name_component(folder, "transformer", from_comfyui), trees, transforms=transforms)
    text = check_tensors(
        name_component(folder, "text_encoder", from_published),
        [LanguageModel(text_config), Table(TABLE, text_config.vocab_size, text_config.hidden_size)],
        (HEAD,),
        transforms=transforms,
    )
    vae = check_tensors(name_component(folder, "vae"), [Autoencoder(vae_config)], transforms=transforms)
    scheduler = read_scheduler(folder, manifest)
    references = open_reference_files(folder, manifest, config, transforms) if config.is_omni else None
    tokenizer = folder / "tokenizer"
    return ZImageFiles(config, text_config, vae_config, scheduler, transformer, text, vae, tokenizer, references)
