"""FLUX.1's files on disk, opened and checked: a diffusers folder, or the original single file and ae.safetensors.

In: a folder. Out: `FluxFiles`, the configs and weights of every component, each tensor accounted for by name and shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...autoencoders.kl import Autoencoder, VaeConfig
from ...autoencoders.layouts import from_ldm
from ...errors import MissingFileError
from ...layers.embed import Table
from ...loading.checkpoint import Checkpoint, open_checkpoint
from ...loading.config import Config
from ...loading.names import Rename
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import Weights, check_tensors
from ...paths import visible
from ...sampling import FlowMatchConfig
from ...text.clip import CLIPConfig, ClipTextModel
from ...text.t5 import T5Config, T5Encoder
from ..folder import DiffusersFolder
from .config import FluxConfig
from .inputs import InputKind, input_kind
from .keys import autoencoder_config, from_clip, from_original, from_t5, transformer_config
from .modulation import FluxModulators
from .spec import SINGLE_FILE
from .transformer import FluxTransformer

Part = TypeVar("Part", bound=Config)
CLIP_TABLE = "embeddings.token_embedding.weight"
T5_TABLE = "shared.weight"


class Original(NamedTuple):
    """A component as it was first published: one file, without a config."""

    pattern: str
    config: Callable[[Checkpoint], dict[str, Any]]  # read off the tensors
    rename: Rename


TRANSFORMER = Original(SINGLE_FILE, transformer_config, from_original)
AUTOENCODER = Original("ae*.safetensors", autoencoder_config, from_ldm)


@dataclass(frozen=True, kw_only=True)
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
    inputs: InputKind
    reference_sizes: tuple[tuple[int, int], ...]  # Kontext's, width and height; () for others


def open_files(folder: DiffusersFolder) -> FluxFiles:
    config, transformer = _named(FluxConfig, folder, "transformer", TRANSFORMER)
    vae_config, vae = _named(VaeConfig, folder, "vae", AUTOENCODER)
    clip, t5 = folder.config("text_encoder", CLIPConfig.read), folder.config("text_encoder_2", T5Config.read)
    where, scale, manifest = transformer.checkpoint.where, vae_config.scale_factor, folder.manifest
    inputs = input_kind(config.in_channels, vae_config.latent_channels, scale, where)
    trees = [FluxTransformer(config), FluxModulators(config)]
    clip_trees = [ClipTextModel(clip), Table(CLIP_TABLE, clip.vocab_size, clip.hidden_size)]
    t5_trees = [T5Encoder(t5), Table(T5_TABLE, t5.vocab_size, t5.d_model)]
    return FluxFiles(
        config=config,
        clip_config=clip,
        t5_config=t5,
        vae_config=vae_config,
        scheduler=folder.scheduler(),
        transformer=check_tensors(transformer, trees, transforms=folder.transforms),
        clip=folder.weights("text_encoder", clip_trees, from_clip),
        t5=folder.weights("text_encoder_2", t5_trees, from_t5),
        vae=check_tensors(vae, [Autoencoder(vae_config)], transforms=folder.transforms),
        tokenizer=folder.path / "tokenizer",
        tokenizer_2=folder.path / "tokenizer_2",
        inputs=inputs,
        reference_sizes=tuple(map(tuple, manifest.extras["references"]["sizes"])) if manifest.edits else (),
    )


def _named(kind: type[Part], folder: DiffusersFolder, component: str, original: Original) -> tuple[Part, NamedTensors]:
    """A component's own folder, or else the original's single file."""
    path = folder.where(component)
    if path.is_file():
        return folder.config(component, kind.read), folder.tensors(component)
    files = visible(folder.path, original.pattern)
    if not files:
        raise MissingFileError(
            f"{path} is not there, and neither is an original {original.pattern} in {folder.path}; the folder is "
            "incomplete."
        )
    checkpoint = open_checkpoint(files[0])
    data = original.config(checkpoint)
    return kind.read(data, files[0]), name_tensors(component, checkpoint, original.rename, data)
