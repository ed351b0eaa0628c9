"""A diffusers folder, part by part: what every family opens in the same way.

Must not know: which parts a family has, what their tensors are called.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingFileError
from ..hub.manifest import Manifest
from ..hub.mlx_folders import listed_packings
from ..loading.checkpoint import open_checkpoint
from ..loading.config import read_json
from ..loading.names import Rename, same_names
from ..loading.tensors import NamedTensors, name_tensors
from ..sampling import FlowMatchConfig


def name_component(folder: Path, component: str, rename: Rename = same_names) -> NamedTensors:
    """component/config.json and the tensors next to it, by our names."""
    config = read_json(folder / component / "config.json")
    if "quantization" not in config and (packed := listed_packings(folder, component)):
        config = {**config, "quantization": packed}
    return name_tensors(component, open_checkpoint(folder / component), rename, config)


def read_scheduler(folder: Path, manifest: Manifest) -> FlowMatchConfig:
    """scheduler/scheduler_config.json; the manifest's where there is no file, or where it merges a LoRA that was made
    for another schedule."""
    path = folder / "scheduler" / "scheduler_config.json"
    published: Any = manifest.extras.get("scheduler")
    if path.is_file() and not ("lora" in manifest.extras and published):
        return FlowMatchConfig.read(read_json(path), path)
    if not published:
        raise MissingFileError(f"{path} is not there; download it from the model's repository.")
    return FlowMatchConfig.read(published, f"weights/{manifest.name}.toml")


def check_widths(where: Path, widths: Iterable[tuple[str, int, int, str]]) -> None:
    """The parts must hand on what the next one takes: a folder may be put together from several. `widths`: a field of
    the config at `where`, its value, what it is to be, and of what."""
    for field, found, expected, other in widths:
        if found != expected:
            raise ConfigError(
                f"{where}: field '{field}' is {found}, but the {other} comes to {expected}: the parts of this folder "
                "are of different models. Take them from one repository."
            )
