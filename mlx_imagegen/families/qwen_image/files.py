"""Qwen-Image's files on disk, opened and checked: a diffusers folder, for text-to-image or for editing.

In: a folder. Out: `QwenImageFiles`, the configs and weights of every component, each tensor accounted for by name and
shape. Whether it is for editing is the manifest's to say: the tensors are the same. Whether it finds layers, the
transformer's config says.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from ...autoencoders.qwen_image import Decoder, Encoder, VaeConfig, unused_tensors
from ...errors import ConfigError
from ...folding import Folded
from ...hub.manifest import Manifest
from ...layers.embed import Table
from ...loading.config import read_json
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...sampling import FlowMatchConfig
from ...text.qwen import HEAD, LanguageModel, QwenConfig, from_published, read_config
from ...vision.patches import PatchConfig
from ...vision.qwen2_5 import VISION, VisionConfig, vision_shapes
from ...vision.tower import check_has_tower
from ..folder import check_widths, name_component, read_scheduler
from .config import QwenImageConfig
from .editing import Editing
from .modulation import QwenImageModulators
from .transformer import QwenImageTransformer

TABLE = "embed_tokens.weight"
ALPHA_CHANNELS = 4  # of a picture with alpha


@dataclass(frozen=True)
class QwenImageFiles:
    config: QwenImageConfig
    text_config: QwenConfig
    vae_config: VaeConfig
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    editing: Editing | None = None
    vision_config: VisionConfig | None = None
    patches: PatchConfig | None = None
    folded: Folded | None = None

    @property
    def columns(self) -> int:
        """Of the tables of a folded checkpoint; 0 in others."""
        return columns(self.config, self.folded)


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> QwenImageFiles:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    paths = {part: folder / part / "config.json" for part in ("transformer", "text_encoder", "vae")}
    data = {part: read_json(path) for part, path in paths.items()}
    config = QwenImageConfig.read(data["transformer"], paths["transformer"])
    _check_layered(config, manifest, paths["transformer"])
    text_config = read_config(data["text_encoder"], paths["text_encoder"])
    vae_config = VaeConfig.read(data["vae"], paths["vae"])
    folded = Folded.read(data["transformer"], paths["transformer"])
    transformer = check_tensors(
        name_component(folder, "transformer"),
        [QwenImageTransformer(config), QwenImageModulators(config, columns(config, folded))],
        folded=QwenImageModulators(config) if folded else None,
        transforms=transforms,
    )
    text_tensors = name_component(folder, "text_encoder", from_published)
    check_widths(
        paths["transformer"],
        (
            ("joint_attention_dim", config.joint_attention_dim, text_config.hidden_size, "text_encoder's hidden_size"),
            ("out_channels", config.out_channels, vae_config.z_dim, "vae's z_dim"),
            ("in_channels", config.in_channels, vae_config.z_dim * config.patch_size**2, "vae's z_dim in patches"),
        ),
    )
    channels = ALPHA_CHANNELS if config.is_layered else ALPHA_CHANNELS - 1
    check_widths(
        paths["vae"],
        (("input_channels", vae_config.input_channels, channels, "number that the transformer's pictures have"),),
    )
    vae = check_tensors(
        name_component(folder, "vae"),
        [Encoder(vae_config), Decoder(vae_config)],
        unused_tensors(vae_config),
        transforms=transforms,
    )
    trees: list[nn.Module] = [LanguageModel(text_config), Table(TABLE, text_config.vocab_size, text_config.hidden_size)]
    opened = config, text_config, vae_config, read_scheduler(folder, manifest), transformer
    if config.is_layered or not manifest.edits:  # the language model sees no pictures
        text = check_tensors(text_tensors, trees, (HEAD, VISION), transforms=transforms)
        return QwenImageFiles(*opened, text, vae, folder / "tokenizer", folded=folded)
    check_has_tower(text_tensors, VISION)
    vision_config = VisionConfig.read_part(data["text_encoder"], paths["text_encoder"])
    text = check_tensors(text_tensors, [*trees, vision_shapes(vision_config)], (HEAD,), transforms=transforms)
    preprocessor = folder / "processor" / "preprocessor_config.json"
    patches = PatchConfig.read_part(read_json(preprocessor), preprocessor)
    _check_eyes(patches, vision_config, preprocessor)
    return QwenImageFiles(
        *opened, text, vae, folder / "tokenizer", Editing.of(manifest), vision_config, patches, folded
    )


def _check_layered(config: QwenImageConfig, manifest: Manifest, where: Path) -> None:
    if config.is_layered != ("layers" in manifest.extras.get("takes", ())):
        raise ConfigError(
            f"{where}: 'use_layer3d_rope' is {config.is_layered}, but the folder is opened as {manifest.name}: the "
            "file is of another model. Take it from the model's repository."
        )


def columns(config: QwenImageConfig, folded: Folded | None) -> int:
    return len(folded.timesteps) + config.zero_cond_t if folded else 0


def _check_eyes(patches: PatchConfig, vision: VisionConfig, where: Path) -> None:
    for field, found, expected in (
        ("patch_size", patches.patch_size, vision.patch_size),
        ("merge_size", patches.merge_size, vision.spatial_merge_size),
        ("temporal_patch_size", patches.temporal_patch_size, vision.temporal_patch_size),
    ):
        if found != expected:
            raise ConfigError(
                f"{where}: field '{field}' is {found}, but text_encoder/config.json's vision_config has {expected}: "
                "the files are of different models. Take them from one repository."
            )
