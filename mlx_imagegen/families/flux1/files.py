"""FLUX.1's files on disk, opened and checked: a diffusers folder, or the original single file and ae.safetensors.

In: a folder. Out: `FluxFiles`, the configs and weights of every component, each tensor accounted for by name and shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.nn as nn

from ...autoencoders.kl import Autoencoder, VaeConfig
from ...autoencoders.layouts import from_ldm
from ...errors import MissingFileError
from ...hub.manifest import Manifest
from ...layers.embed import Table
from ...loading.checkpoint import Checkpoint, open_checkpoint
from ...loading.config import Config, read_json
from ...loading.names import Rename, same_names
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import Weights, WeightTransforms, check_tensors
from ...paths import visible
from ...sampling import FlowMatchConfig
from ...text.clip import CLIPConfig, ClipTextModel
from ...text.t5 import T5Config, T5Encoder
from ..folder import name_component, read_scheduler
from .config import FluxConfig
from .inputs import InputKind, input_kind
from .keys import from_clip, from_original, from_t5
from .modulation import FluxModulators
from .original import autoencoder_config, transformer_config
from .transformer import FluxTransformer

Part = TypeVar("Part", bound=Config)
CLIP_TABLE = "embeddings.token_embedding.weight"
T5_TABLE = "shared.weight"


class Original(NamedTuple):
    """A component as it was first published: one file, without a config."""

    pattern: str
    config: Callable[[Checkpoint], dict[str, Any]]  # read off the tensors
    rename: Rename


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
    inputs: InputKind
    reference_sizes: tuple[tuple[int, int], ...] = ()  # Kontext's, width and height; () for others


def open_files(folder: Path, manifest: Manifest, transforms: WeightTransforms) -> FluxFiles:
    """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
    original = Original("flux1*.safetensors", transformer_config, from_original)
    config, transformer = _named(FluxConfig, folder, "transformer", original=original)
    original = Original("ae*.safetensors", autoencoder_config, from_ldm)
    vae_config, vae = _named(VaeConfig, folder, "vae", original=original)
    clip_config, clip = _named(CLIPConfig, folder, "text_encoder", from_clip)
    t5_config, t5 = _named(T5Config, folder, "text_encoder_2", from_t5)

    where = transformer.checkpoint.where
    inputs = input_kind(config.in_channels, vae_config.latent_channels, vae_config.scale_factor, where)

    def checked(tensors: NamedTensors, *trees: nn.Module) -> Weights:
        return check_tensors(tensors, trees, transforms=transforms)

    return FluxFiles(
        config,
        clip_config,
        t5_config,
        vae_config,
        read_scheduler(folder, manifest),
        checked(transformer, FluxTransformer(config), FluxModulators(config)),
        checked(clip, ClipTextModel(clip_config), Table(CLIP_TABLE, clip_config.vocab_size, clip_config.hidden_size)),
        checked(t5, T5Encoder(t5_config), Table(T5_TABLE, t5_config.vocab_size, t5_config.d_model)),
        checked(vae, Autoencoder(vae_config)),
        folder / "tokenizer",
        folder / "tokenizer_2",
        inputs,
        tuple((width, height) for width, height in manifest.extras["references"]["sizes"]) if manifest.edits else (),
    )


def _named(
    kind: type[Part],
    folder: Path,
    component: str,
    rename: Rename = same_names,
    original: Original | None = None,
) -> tuple[Part, NamedTensors]:
    """A component's own folder, or else the original's single file, if there ever was one."""
    path = folder / component / "config.json"
    if path.is_file() or original is None:
        return kind.read(read_json(path), path), name_component(folder, component, rename)
    files = visible(folder, original.pattern)
    if not files:
        raise MissingFileError(
            f"{path} is not there, and neither is an original {original.pattern} in {folder}; the folder is incomplete."
        )
    checkpoint = open_checkpoint(files[0])
    data = original.config(checkpoint)
    return kind.read(data, files[0]), name_tensors(component, checkpoint, original.rename, data)
