"""Qwen-Image's files on disk, opened and checked: a diffusers folder, for text-to-image or for editing.

In: a folder. Out: `QwenImageFiles`, the configs and weights of every component, each tensor accounted for by name and
shape. Whether it is for editing is the manifest's to say: the tensors are the same. Whether it finds layers, the
transformer's config says.
"""

from dataclasses import dataclass
from typing import Any

from ...autoencoders.qwen_image import Decoder, Encoder, VaeConfig, unused_tensors
from ...errors import ConfigError
from ...folding import Folded
from ...loading.config import read_json
from ...text.qwen import QwenConfig, from_published, read_config
from ...vision.patches import PatchConfig
from ...vision.qwen2_5 import VISION, VisionConfig, vision_shapes
from ...vision.tower import check_has_tower
from ..folder import DiffusersFolder, FolderFiles
from .config import QwenImageConfig
from .editing import Editing
from .modulation import QwenImageModulators
from .transformer import QwenImageTransformer

ALPHA_CHANNELS = 4  # of a picture with alpha


@dataclass(frozen=True, kw_only=True)
class QwenImageFiles(FolderFiles):
    config: QwenImageConfig
    vae_config: VaeConfig
    editing: Editing | None = None
    vision_config: VisionConfig | None = None
    patches: PatchConfig | None = None
    folded: Folded | None = None

    @property
    def columns(self) -> int:
        """Of the tables of a folded checkpoint; 0 in others."""
        return columns(self.config, self.folded)


def columns(config: QwenImageConfig, folded: Folded | None) -> int:
    return len(folded.timesteps) + config.zero_cond_t if folded else 0


def open_files(folder: DiffusersFolder) -> QwenImageFiles:
    config = folder.config("transformer", QwenImageConfig.read)
    _check_layered(config, folder)
    text_config = folder.config("text_encoder", read_config)
    vae_config = folder.config("vae", VaeConfig.read)
    folded = folder.config("transformer", Folded.read)
    trees = [QwenImageTransformer(config), QwenImageModulators(config, columns(config, folded))]
    transformer = folder.weights("transformer", trees, folded=QwenImageModulators(config) if folded else None)
    folder.check_widths(
        "transformer",
        ("joint_attention_dim", config.joint_attention_dim, text_config.hidden_size, "text_encoder's hidden_size"),
        ("out_channels", config.out_channels, vae_config.z_dim, "vae's z_dim"),
        ("in_channels", config.in_channels, vae_config.z_dim * config.patch_size**2, "vae's z_dim in patches"),
    )
    channels = ALPHA_CHANNELS if config.is_layered else ALPHA_CHANNELS - 1
    folder.check_widths(
        "vae", ("input_channels", vae_config.input_channels, channels, "number that the transformer's pictures have")
    )
    sees = folder.manifest.edits and not config.is_layered
    return QwenImageFiles(
        config=config,
        text_config=text_config,
        vae_config=vae_config,
        scheduler=folder.scheduler(),
        transformer=transformer,
        vae=folder.weights("vae", [Encoder(vae_config), Decoder(vae_config)], unused=unused_tensors(vae_config)),
        tokenizer=folder.path / "tokenizer",
        folded=folded,
        **_seeing(folder, text_config) if sees else {"text": folder.language_model(text_config, unused=(VISION,))},
    )


def _seeing(folder: DiffusersFolder, text_config: QwenConfig) -> dict[str, Any]:
    """A language model with its vision tower, and how pictures are prepared for it."""
    check_has_tower(folder.tensors("text_encoder", from_published), VISION)
    vision_config = folder.config("text_encoder", VisionConfig.read_part)
    preprocessor = folder.path / "processor" / "preprocessor_config.json"
    patches = PatchConfig.read_part(read_json(preprocessor), preprocessor)
    patches.check_tower(vision_config, preprocessor, folder.where("text_encoder"))
    text = folder.language_model(text_config, trees=[vision_shapes(vision_config)])
    return {"text": text, "vision_config": vision_config, "patches": patches, "editing": Editing.of(folder.manifest)}


def _check_layered(config: QwenImageConfig, folder: DiffusersFolder) -> None:
    if config.is_layered != ("layers" in folder.manifest.extras.get("takes", ())):
        raise ConfigError(
            f"{folder.where('transformer')}: 'use_layer3d_rope' is {config.is_layered}, but the folder is opened as "
            f"{folder.manifest.name}: the file is of another model. Take it from the model's repository."
        )
