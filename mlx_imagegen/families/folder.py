"""A diffusers folder, part by part: what every family opens in the same way.

Must not know: which parts a family has, what their tensors are called.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.nn as nn

from ..errors import ConfigError, MissingFileError
from ..hub.manifest import Manifest
from ..hub.mlx_folders import listed_packings
from ..layers.embed import Table
from ..loading.checkpoint import open_checkpoint
from ..loading.config import read_json
from ..loading.modules import join
from ..loading.names import Rename, same_names
from ..loading.tensors import NamedTensors, name_tensors
from ..loading.weights import Weights, WeightTransforms, check_tensors
from ..sampling import FlowMatchConfig
from ..text.qwen import HEAD, LanguageModel, QwenConfig, from_published, unread_tensors

Part = TypeVar("Part")
TABLE = "embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """Configs and weights of a folder with a transformer, a language model for the text, and an autoencoder."""

    config: Any
    text_config: QwenConfig
    vae_config: Any
    scheduler: FlowMatchConfig
    transformer: Weights
    text: Weights
    vae: Weights
    tokenizer: Path
    text_depth: int | None = None  # so many of the language model's layers are read; None: all, and its last norm
    text_path: str = ""  # where the language model stands in the checkpoint's tree

    @property
    def text_table(self) -> str:
        return join(self.text_path, TABLE)


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder with a folder for each component, of which configs and headers are read, and no weights."""

    path: Path
    manifest: Manifest  # that it is opened as
    transforms: WeightTransforms  # of every component

    def where(self, component: str) -> Path:
        return self.path / component / "config.json"

    def config(self, component: str, read: Callable[[dict[str, Any], Path], Part]) -> Part:
        return read(read_json(self.where(component)), self.where(component))

    def weights(
        self,
        component: str,
        trees: Iterable[nn.Module],
        rename: Rename = same_names,
        unused: Sequence[str] = (),
        folded: nn.Module | None = None,
    ) -> Weights:
        """Every tensor's name and shape checked, as by `check_tensors`."""
        return check_tensors(self.tensors(component, rename), trees, unused, folded, self.transforms)

    def tensors(self, component: str, rename: Rename = same_names) -> NamedTensors:
        """Those next to a component's config.json, by our names."""
        config = read_json(self.where(component))
        if "quantization" not in config and (packed := listed_packings(self.path, component)):
            config = {**config, "quantization": packed}
        return name_tensors(component, open_checkpoint(self.path / component), rename, config)

    def language_model(
        self, config: QwenConfig, depth: int | None = None, trees: Sequence[nn.Module] = (), unused: Sequence[str] = ()
    ) -> Weights:
        """`depth`: as `FolderFiles` has it. `trees`: what is read of the file besides."""
        own = [LanguageModel(config, depth), Table(TABLE, config.vocab_size, config.hidden_size)]
        unread = (HEAD,) if depth is None else unread_tensors(config, depth)
        return self.weights("text_encoder", [*own, *trees], from_published, (*unread, *unused))

    def scheduler(self) -> FlowMatchConfig:
        """scheduler/scheduler_config.json; the manifest's where there is no file, or where it merges a LoRA that was
        made for another schedule."""
        path, extras = self.path / "scheduler" / "scheduler_config.json", self.manifest.extras
        published: Any = extras.get("scheduler")
        if path.is_file() and not ("lora" in extras and published):
            return FlowMatchConfig.read(read_json(path), path)
        if not published:
            raise MissingFileError(f"{path} is not there; download it from the model's repository.")
        return FlowMatchConfig.read(published, f"weights/{self.manifest.name}.toml")

    def check_widths(self, component: str, *widths: tuple[str, int, int, str]) -> None:
        check_widths(self.where(component), widths)


def check_widths(where: Path, widths: Iterable[tuple[str, int, int, str]]) -> None:
    """The parts must hand on what the next one takes: a folder may be put together from several. `widths`: a field of
    the config at `where`, its value, what it is to be, and of what."""
    for field, found, expected, other in widths:
        if found != expected:
            raise ConfigError(
                f"{where}: field '{field}' is {found}, but the {other} comes to {expected}: the parts of this folder "
                "are of different models. Take them from one repository."
            )
