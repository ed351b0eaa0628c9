"""Z-Image's files on disk, opened and checked: a diffusers folder.

In: a folder. Out: `ZImageFiles`, the configs and weights of every component, each tensor accounted for by name and
shape.
"""

from dataclasses import dataclass
from pathlib import Path

from ...autoencoders.kl import Autoencoder, VaeConfig
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
from .transformer import PromptRefiner, ZImageTransformer

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
    transformer = check_tensors(
        name_component(folder, "transformer", from_comfyui),
        [ZImageTransformer(config), PromptRefiner(config), ZImageModulators(config)],
        transforms=transforms,
    )
    text = check_tensors(
        name_component(folder, "text_encoder", from_published),
        [LanguageModel(text_config), Table(TABLE, text_config.vocab_size, text_config.hidden_size)],
        (HEAD,),
        transforms=transforms,
    )
    vae = check_tensors(name_component(folder, "vae"), [Autoencoder(vae_config)], transforms=transforms)
    scheduler = read_scheduler(folder, manifest)
    return ZImageFiles(config, text_config, vae_config, scheduler, transformer, text, vae, folder / "tokenizer")
