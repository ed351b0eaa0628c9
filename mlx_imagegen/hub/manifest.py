"""Reads weights/*.toml: what a checkpoint's own files do not say.

Out: `Manifest`s with repository, licence, which files, default steps, guidance and sizes. Never a width or a depth.
Must not know: tensors, downloads, folders of models.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..families import registered_specs


@dataclass(frozen=True)
class Defaults:
    steps: int
    width: int
    height: int
    guidance: float
    negative_prompt: str | None = None
    max_sequence_length: int = 512
    sampler: str | None = None


# What a checkpoint is; all but models stand next to one, of the families that they name.
KINDS = ("model", "control network", "image adapter", "upscaler", "text encoder")


@dataclass(frozen=True)
class Manifest:
    name: str
    title: str
    family: str
    defaults: Defaults
    repo: str | None = None
    revision: str | None = None
    licence: str = "unknown"
    gated: bool = False
    download: tuple[str, ...] = ()  # file patterns of the repository that the library reads
    download_bytes: int = 0  # what those files come to, for lists; a download asks the hub
    folder: str | None = None  # bundled: a folder next to the manifests
    # "embedded": a number the transformer reads; "cfg": the scale between two branches, which is off at 1;
    # "cfg_from_0": the same, off at 0; "none": distilled, takes none; "never": distilled so that a second branch spoils
    # the picture
    guidance: str = "cfg"
    edits: bool = False  # takes reference pictures
    kind: str = "model"
    families: tuple[str, ...] = ()  # that a checkpoint of another kind goes with
    tensor_shapes: str | None = None  # a file of weights/tensor_shapes/: the published names and shapes
    note: str | None = None  # one line shown when the model is chosen
    extras: dict[str, Any] = field(default_factory=dict)  # the family's own keys

    @property
    def bundled(self) -> Path | None:
        return data_folder("weights") / self.folder if self.folder else None


@dataclass(frozen=True)
class Model:
    """A name, resolved: a manifest, and a folder if the files are here already."""

    manifest: Manifest
    folder: Path | None
    requested_as: str  # what the user called it, files and folders as absolute paths
    file: Path | None = None  # where the model is a single file: `folder` is then put together for this process alone


def data_folder(name: str) -> Path:
    """`weights` or `quant`: inside the package when installed from a wheel, next to it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / name if (here / name).is_dir() else here.parent / name


def manifests(kind: str = "model") -> dict[str, Manifest]:
    """Those of one kind, by name."""
    folders = (data_folder("weights"), *(spec.manifests for spec in registered_specs() if spec.manifests))
    return _manifests(folders)[kind]


@functools.cache
def _manifests(folders: tuple[Path, ...]) -> Mapping[str, dict[str, Manifest]]:
    """By kind and name."""
    paths = sorted((path for folder in folders for path in folder.glob("*.toml")), key=lambda path: path.stem)
    by_kind: dict[str, dict[str, Manifest]] = {kind: {} for kind in KINDS}
    for manifest in map(_read, paths):
        by_kind[manifest.kind][manifest.name] = manifest
    return by_kind


def _table(path: Path) -> dict[str, Any]:
    """A manifest's text, on top of its `base` manifest's where it names one; tables are merged key by key."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if "base" not in data:
        return data
    base = _table(path.with_name(f"{data['base']}.toml"))
    tables = {key: base[key] | value for key, value in data.items() if isinstance(value, dict) and key in base}
    return base | data | tables


def _read(path: Path) -> Manifest:
    data = _table(path)
    known = {item.name for item in fields(Manifest)} - {"extras", "name"}
    defaults = Defaults(**data.pop("defaults"))
    values = {key: data.pop(key) for key in list(data) if key in known}
    values |= {key: tuple(values.get(key, ())) for key in ("download", "families")}
    return Manifest(name=path.stem, defaults=defaults, extras=data, **values)
