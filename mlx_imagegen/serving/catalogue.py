"""The models and LoRAs that clients may name, and which of the models fit this machine.

In: the server's own model and the folders that it was started with. Out: an `Entry` for a name. A client's name is
looked up in a list and never used as a path, so that no folder is read but those that were given.
Must not know: HTTP, jobs, how a model is opened.
"""

import difflib
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import ImagegenError, LoraError, MissingFileError, QuantizationError, RequestError, UnknownModelError
from ..families import family_spec, open_family
from ..families.base import Family
from ..hub.download import HuggingFace, identify, local_folder
from ..hub.manifest import Manifest, Model, data_folder, manifests
from ..hub.recognition import find
from ..hub.record import record_of
from ..hub.snapshots import cached
from ..loading.weights import WeightTransforms
from ..lora.file import open_lora
from ..machine import memory_limit
from ..packing.recipes import AS_STORED, recipe_names, recipe_of
from ..paths import visible
from ..planning.fitting import peaks_by_recipe
from ..request.job import usual_job
from ..request.sizes import multiple_of
from .pictures import shortened

LIST_SECONDS = 5.0  # a list of what folders hold is used again for so long
LORA_SUFFIX = ".safetensors"
# What clients of OpenAI's service call its models; many offer no other names. Here they mean the server's own model.
OPENAI_NAMES = re.compile(r"(dall-e|gpt-image|chatgpt-image)[\w.-]*")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """A model by the name that clients use."""

    name: str
    source: str  # what load() takes
    manifest: Manifest
    is_folder: bool = False  # not of this package or the hub's cache
    is_packed: bool = False  # by our converter: no recipe changes it

    @property
    def family(self) -> str:
        """For people, and in what LoRAs say of themselves."""
        return family_spec(self.manifest.family).title


@dataclass(frozen=True)
class LoraEntry:
    path: Path
    family: str | None  # the model that its keys name; None if they name none


@dataclass(frozen=True)
class Fit:
    """The most memory that a picture of the model's usual size takes, one stage at a time."""

    quant: str | None
    peak_bytes: int
    fits: bool


class Listing(Generic[Value]):
    """What `read` finds, read again after a while."""

    def __init__(self, read: Callable[[], Iterable[tuple[str, Value]]]):
        self._read = read
        self._kept: tuple[float, dict[str, Value]] | None = None

    def __call__(self) -> dict[str, Value]:
        if self._kept is None or time.monotonic() - self._kept[0] > LIST_SECONDS:
            self._kept = time.monotonic(), dict(self._read())
        return self._kept[1]

    def forget(self) -> None:
        self._kept = None


def checked_folder(folder: Path | None, flag: str) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise MissingFileError(f"{flag}: {folder} is not a folder here.")
    return folder


class Catalogue:
    def __init__(self, model: str, models_folder: Path | None = None, loras_folder: Path | None = None):
        """`model`: what is meant where a client names none."""
        self.default = _entry(identify(model))
        self.models = Listing(lambda: _models(self.default, checked_folder(models_folder, "--models-dir")))
        self.loras = Listing(lambda: _loras(checked_folder(loras_folder, "--loras-dir")))
        self.models()
        self.loras()

    def model(self, name: Any) -> Entry:
        """Of what a client gave as a model's name."""
        if name is not None and not isinstance(name, str):
            raise RequestError(f"model {shortened(name)}: give a model's name, as text.")
        if not name or OPENAI_NAMES.fullmatch(name):
            return self.default
        known = self.models()
        if name in known:
            return known[name]
        if name in manifests():
            raise UnknownModelError(
                f"{name} is not on this machine, and a request does not download it; start the server with "
                f"--model {name}, which does."
            )
        raise UnknownModelError(f"no model is called {shortened(name)} here; {_hint(name, known)}")

    def lora(self, name: str) -> LoraEntry:
        known = self.loras()
        if name.removesuffix(LORA_SUFFIX) not in known:
            raise LoraError(f"no LoRA is called {shortened(name)} here; {_hint(name, known)}")
        return known[name.removesuffix(LORA_SUFFIX)]

    def refresh(self) -> None:
        """What the folders hold is read again."""
        self.models.forget()
        self.loras.forget()

    def lora_name(self, path: str) -> str:
        """What clients call a LoRA's file."""
        return next((name for name, known in self.loras().items() if str(known.path) == path), Path(path).name)


def check_quant(name: str | None) -> str | None:
    """A recipe that the package has; a recipe's file is not read for a client."""
    if name not in (None, AS_STORED, *recipe_names()):
        known = ", ".join(sorted(recipe_names()))
        raise QuantizationError(f"quant {shortened(name)}: give one of {known}, or leave it out.")
    return recipe_of(name)


def size_multiple(entry: Entry) -> int:
    """What sizes must be a multiple of: a folder's own files say."""
    return _folders_multiple(entry.source) if entry.is_folder else multiple_of(entry.manifest)


@functools.cache
def _folders_multiple(source: str) -> int:
    return _opened(source)[0].size_multiple


@functools.cache
def fits(source: str) -> tuple[Fit, ...]:
    """As the files are, and packed by each recipe; the first alone where the files are packed."""
    family, manifest = _opened(source)
    peaks = peaks_by_recipe(family, usual_job(manifest, family.size_multiple))
    return tuple(Fit(quant, peak, peak <= memory_limit().most_bytes) for quant, peak in peaks)


def _opened(source: str) -> tuple[Family[Any], Manifest]:
    """Headers alone."""
    found = find(source)
    folder = found.folder or local_folder(found.manifest)
    if folder is None:
        raise MissingFileError(f"{source} is not on this machine.")
    return open_family(found.manifest, folder, WeightTransforms()), found.manifest


def is_here(manifest: Manifest) -> bool:
    """Whether all of a model's files are on this machine: its repository's, and those of the LoRA that makes it."""
    own = manifest.extras.get("lora") or {}
    if "repo" in own:
        folder = cached(HuggingFace().cache, own["repo"], own["revision"])
        if folder is None or not (folder / own["file"]).is_file():
            return False
    return local_folder(manifest) is not None


def _models(default: Entry, folder: Path | None) -> Iterator[tuple[str, Entry]]:
    """All that can be used without a download; the server's own first, a folder before a manifest of the same name."""
    here = {manifest.name: Entry(manifest.name, manifest.name, manifest) for manifest in manifests().values()}
    here = {name: entry for name, entry in here.items() if is_here(entry.manifest)}
    for path in visible(folder, "*/") if folder else ():
        with suppress(ImagegenError, OSError):  # no model, or one that this version does not have
            here[path.name] = _entry(find(str(path.absolute())))
    yield from ({default.name: default} | here | {default.name: default}).items()


def _entry(found: Model) -> Entry:
    if found.folder is None or found.manifest.bundled:
        return Entry(found.requested_as, found.requested_as, found.manifest)
    folder = found.folder.absolute()
    return Entry(folder.name, str(folder), found.manifest, True, "recipe" in record_of(folder))


def _loras(folder: Path | None) -> Iterator[tuple[str, LoraEntry]]:
    for place in (data_folder("weights") / "demo" / "loras", *filter(None, [folder])):
        for path in visible(place, f"**/*{LORA_SUFFIX}"):
            try:
                file = open_lora(path)
            except (ImagegenError, OSError):  # no LoRA, or one that this version cannot use
                continue
            yield path.relative_to(place).as_posix().removesuffix(LORA_SUFFIX), LoraEntry(path, file.family)


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}." if known else "there is none."
