"""Reads weights/*.toml: what a checkpoint's own files do not say.

Out: `Manifest`s with repository, licence, which files, default steps, guidance and sizes. Never a width or a depth.
Must not know: tensors, downloads, folders of models.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from ..documents import read_toml
from ..errors import ConfigError
from ..escaping import shown
from ..families import registered_specs
from ..loading.config import MANY, POSITIVE, TEXT, Config, Range, read_fields
from ..paths import is_file_name, visible

BASES_LIMIT = 8  # manifests that a manifest stands on
REMEDY = "correct the manifest, or take the one that came with the package"


@dataclass(frozen=True)
class Defaults(Config):
    steps: Annotated[int, Range(1, 1000)]
    width: Annotated[int, Range(1, 2**16)]
    height: Annotated[int, Range(1, 2**16)]
    guidance: Annotated[float, Range(0, 1000)]
    negative_prompt: Annotated[str, TEXT] | None = None
    max_sequence_length: int = 512
    sampler: str | None = None


NO_PICTURE: dict[str, Any] = {"steps": 0, "width": 0, "height": 0, "guidance": 0.0}  # of what draws none by itself


@dataclass(frozen=True)
class Sizes(Config):
    """[sizes]"""

    multiple: Annotated[int, Range(1, 1024)] = 1
    least_patches: Annotated[int, Range(1, 1024)] = 1
    fitting_pixels: Annotated[tuple[int, int], MANY] = (1, 2**31)
    reference_side: int = 1
    presets: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class OneReference(Config):
    """[sampling.one_reference]: what is different there."""

    shift: Annotated[float, POSITIVE] = 1.0
    sampler: str = ""
    noise_scale: tuple[float, ...] = ()
    noise_clip: Annotated[float, Range(0, 1000)] = 0.0
    timesteps: Annotated[tuple[float, ...], Range(0, 1000)] = ()


@dataclass(frozen=True)
class Sampling(Config):
    """[sampling]"""

    shift: Annotated[float, POSITIVE]
    noise_scale: tuple[float, ...]
    sampler: str = ""
    noise_clip: Annotated[float, Range(0, 1000)] = 0.0
    timesteps: Annotated[tuple[float, ...], Range(0, 1000)] = ()
    one_reference: OneReference | None = None


@dataclass(frozen=True)
class OwnLora(Config):
    """[lora]"""

    file: Annotated[str, TEXT] = ""
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class SharedExtras:
    """The keys of several families, with their kinds; what only one family has, it reads itself."""

    takes: tuple[str, ...] = ()
    references_limit: int = 1
    references_least: Annotated[int, Range(0, 100)] = 0
    layers: Annotated[int, Range(1, 100)] = 1
    references_area: Annotated[int, MANY] = 1
    whole_prompt: bool = False
    sizes: Sizes | None = None
    sampling: Sampling | None = None
    lora: OwnLora | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)


class Table(dict[str, Any]):
    """A manifest's own table: a key that a family needs, and that is not there, is named."""

    where = "the manifest"

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.where} lacks '{key}'; {REMEDY}.")


def _as_table(data: Mapping[str, Any], where: str) -> Table:
    table = Table({key: _as_table(each, where) if isinstance(each, dict) else each for key, each in data.items()})
    table.where = where
    return table


# What a checkpoint is; all but models stand next to one, of the families that they name.
GUIDANCE = ("embedded", "cfg", "cfg_from_0", "none", "never")
KINDS = ("model", "control network", "image adapter", "upscaler", "text encoder", "prompt upsampler")


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
    download_bytes: Annotated[int, Range(0, 10**15)] = 0  # what those files come to, for lists; a download asks the hub
    folder: str | None = None  # bundled: a folder next to the manifests
    # "embedded": a number the transformer reads; "cfg": the scale between two branches, which is off at 1;
    # "cfg_from_0": the same, off at 0; "none": distilled, takes none; "never": distilled so that a second branch spoils
    # the picture
    guidance: str = "cfg"  # one of GUIDANCE
    edits: bool = False  # takes reference pictures
    kind: str = "model"
    families: tuple[str, ...] = ()  # that a checkpoint of another kind goes with
    tensor_shapes: str | None = None  # a file of weights/tensor_shapes/: the published names and shapes
    note: Annotated[str, TEXT] | None = None  # one line shown when the model is chosen
    words: tuple[str, ...] = ()  # lists of all words that it knows, files next to the manifests; none: any word
    example: Annotated[str, TEXT] | None = None  # a prompt that it draws well
    captions: str | None = None  # what its captions consist of, a file next to the manifests: prompts are completed
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
    paths = sorted((path for folder in folders for path in visible(folder, "*.toml")), key=lambda path: path.stem)
    by_kind: dict[str, dict[str, Manifest]] = {kind: {} for kind in KINDS}
    for manifest in map(_read, paths):
        by_kind[manifest.kind][manifest.name] = manifest
    return by_kind


def _table(path: Path, bases: int = 0) -> dict[str, Any]:
    """A manifest's text, on top of its `base` manifest's where it names one; tables are merged key by key."""
    data = read_toml(path, again=REMEDY)
    if "base" not in data:
        return data
    if bases == BASES_LIMIT or not is_file_name(data["base"]):
        raise ConfigError(f"{path}: its base {shown(data['base'])} is no manifest, or stands on itself; {REMEDY}.")
    base = _table(path.with_name(f"{data['base']}.toml"), bases + 1)
    tables = {
        key: base[key] | value
        for key, value in data.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | data | tables


def _read(path: Path) -> Manifest:
    data = _table(path)
    own = {item.name for item in fields(Manifest)} - {"extras", "name"}
    known = {key: value for key, value in data.items() if key in own}
    extras = {key: value for key, value in data.items() if key not in own}
    values, missing = read_fields(Manifest, known, path)
    if "defaults" in missing and values.get("kind", "model") != "model":
        values["defaults"] = Defaults(**NO_PICTURE)
        missing.remove("defaults")
    read_fields(SharedExtras, extras, path)
    if lacking := sorted({*missing} - {"name"}):
        raise ConfigError(f"{path} lacks '{lacking[0]}'; {REMEDY}.")
    if values.get("kind", "model") not in KINDS or values.get("guidance", "cfg") not in GUIDANCE:
        raise ConfigError(
            f"{path}: its kind must be one of {', '.join(KINDS)}, and its guidance one of {', '.join(GUIDANCE)}; "
            f"{REMEDY}."
        )
    return Manifest(name=path.stem, extras=_as_table(extras, str(path)), **values)
