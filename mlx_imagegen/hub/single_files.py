"""A model from single files: what a file is, what goes with it, and a folder in which families open all of it.

In: a .safetensors or .gguf file of a diffusion model, alone or with its text encoders and autoencoder in it. Out: its
manifest and a folder in the diffusers layout: config.json files, indexes of where each tensor's rows are, links to
tokenizers. The folder is of this process alone; nothing of the weights is copied or read. What a file does not have is
looked for in the ComfyUI folder that it is in or that is set, then in the hub's cache, then in this package.
Must not know: any family's names (they are each family's `single_files`).
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import write_json
from ..errors import CheckpointError, ConfigError, MissingFileError
from ..escaping import listed
from ..families import FamilySpec, family_spec, family_specs
from ..loading.checkpoint import open_checkpoint
from ..loading.folder import RECOGNIZED_BY
from ..loading.gguf import is_gguf
from ..loading.single_file import GIVEN_AS, MARKERS, NETWORK, Found, SingleFile, find_layout
from ..loading.tensor import Tensor
from ..paths import expanded
from .comfy import ENCODERS, VAES, ComfyFolder, chosen_folder, folder_of
from .component_folders import (
    component_config,
    config_of,
    published_config,
    published_files,
    temporary_folder,
    write_component,
)
from .manifest import Manifest, manifests
from .mlx_folders import check_no_network, component_folders, saved_name
from .snapshots import cache_folder, cached
from .tokenizer_data import write_tokenizer

SCHEDULER = "scheduler/scheduler_config.json"
SMALL_FILES = (SCHEDULER, "processor/preprocessor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")  # at a repository's root

TOKENIZER_REPO = "tokenizer_repo"  # a manifest's key: a repository that has the same tokenizer and asks for no access
NO_ACCESS = "which asks for no access"


@dataclass(frozen=True)
class Component:
    """A component of a family, found in a file."""

    spec: FamilySpec
    found: Found

    @property
    def is_denoiser(self) -> bool:
        return self.found.layout.manifest is not None

    @property
    def adds(self) -> str:
        return self.found.layout.adds

    def nearest_manifest(self) -> Manifest:
        chooser = self.found.layout.manifest
        assert chooser is not None  # only denoisers are asked
        path = self.found.path
        name = saved_name(path) if path.is_dir() else path.name
        return manifests()[chooser(name.lower(), self.found.tensors)]


def layouts_of(spec: FamilySpec) -> Sequence[SingleFile]:
    if spec.single_files is None:
        return ()
    module, _, name = spec.single_files.partition(":")
    layouts: Sequence[SingleFile] = getattr(importlib.import_module(module), name)
    return layouts


def components_in(path: Path) -> list[Component]:
    """All that a file is, of every family that can use it."""
    checkpoint = open_checkpoint(path)
    layouts = ((spec, layout) for spec in family_specs() for layout in layouts_of(spec))
    fitting = ((spec, layout) for spec, layout in layouts if layout.architecture in ("", checkpoint.architecture))
    found = ((spec, find_layout(path, checkpoint.tensors, layout)) for spec, layout in fitting)
    return [Component(spec, each) for spec, each in found if each]


@functools.lru_cache(maxsize=64)
def _components_in(path: Path, stamp: tuple[int, int]) -> list[Component]:
    return components_in(path)


def known_components(path: Path) -> list[Component]:
    """The same, read once for as long as the file does not change."""
    status = path.stat()
    return _components_in(path, (status.st_size, status.st_mtime_ns))


_sources: dict[Path, Path] = {}  # folders put together here -> what they were made from


def source_of(folder: Path) -> Path:
    """What the user named, where a folder was put together here."""
    return _sources.get(folder, folder)


@dataclass(frozen=True)
class Assembly:
    """A diffusion model's file with all that goes with it, as far as it is here."""

    path: Path
    manifest: Manifest
    parts: Mapping[str, Found]  # by component
    additions: Mapping[str, Found]  # what these lack, from files of their own
    folders: Mapping[str, Path]  # components and tokenizers that are folders of their own
    packaged: Mapping[str, str]  # tokenizers that come with this package, by name
    missing: Sequence[str]


def assemble(path: Path) -> Assembly:
    """What is there for a diffusion model's file; nothing is written."""
    path = expanded(path).absolute()
    check_no_network(path)
    inner = component_folders(path) if path.is_dir() else [path]
    components = [component for place in inner for component in known_components(place)]
    denoiser = next((each for each in components if each.is_denoiser), None)
    if denoiser is None:
        raise _not_a_model(path, components)
    spec, manifest = denoiser.spec, denoiser.nearest_manifest()
    parts = {each.found.layout.component: each.found for each in components if each.spec == spec and not each.adds}
    for source in inner:
        _check_leftover(source, [found for found in parts.values() if found.path == source])
    config, additions = component_config(denoiser.found, manifest), {}
    for component in spec.components:
        if component not in parts and (found := _companion(denoiser, component, config, path)):
            parts[component] = found
            encoder = component_config(found, manifest)
            if is_gguf(found.path) and (more := _companion(denoiser, component, encoder, path, adding=True)):
                additions[component] = more
    wanted = [component for component in spec.components if component not in parts]
    sources = [manifest, *_manifests_with_parts_for(manifest)]
    folders = {place: _cached(spec, sources, place, _is_complete) for place in wanted}
    for place, published in spec.tokenizers.items():
        own = next((path / each for each in (place, published) if _has_tokenizer(path / each)), None)
        mirrors = filter(None, [manifest.extras.get(TOKENIZER_REPO)])
        folders[place] = own or _cached(spec, sources, published, _has_tokenizer, mirrors)
    there = {place: folder for place, folder in folders.items() if folder}
    tokenizers = manifest.extras.get("packaged_tokenizers", spec.packaged_tokenizers)
    packaged = {place: name for place, name in tokenizers.items() if place not in there}
    missing = [place for place in folders if place not in there and place not in packaged]
    return Assembly(path, manifest, parts, additions, there, packaged, missing)


def open_single_file(path: Path) -> tuple[Manifest, Path]:
    """The manifest nearest to a diffusion model's file, and a folder with it and all that goes with it."""
    assembly = assemble(path)
    if assembly.missing:
        raise MissingFileError(missing_line(assembly))
    folder = temporary_folder()
    _sources[folder] = assembly.path
    for component, found in assembly.parts.items():
        config = component_config(found, assembly.manifest)
        write_component(folder, found, config, assembly.additions.get(component))
    for place, source in assembly.folders.items():
        (folder / place).symlink_to(source)
    for place, name in assembly.packaged.items():
        write_tokenizer(folder / place, name)
    published = published_files(assembly.manifest)
    own = {SCHEDULER} if "scheduler" in assembly.manifest.extras else set()
    for name in published.keys() & set(SMALL_FILES) - own:
        if not (folder / name).parent.is_symlink() and not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            write_json(folder / name, published[name])
    return assembly.manifest, folder


def companions(path: Path, component: str) -> Iterator[tuple[Path, Component]]:
    """The files in reach of a diffusion model's that hold a component."""
    folders: dict[Path, ComfyFolder] = {}
    for folder in filter(None, (folder_of(path), chosen_folder())):
        folders.setdefault(folder.models.resolve(), folder)
    for folder in folders.values():
        for file in folder.files((*ENCODERS, *VAES)):
            try:
                known = known_components(file)
            except (CheckpointError, MissingFileError):  # another model's, which need not be sound
                continue
            yield from ((file, each) for each in known if each.found.layout.component == component)


def _companion(
    denoiser: Component, component: str, config: Mapping[str, Any], path: Path, adding: bool = False
) -> Found | None:
    """The best of the files that fit; `adding`: of those for what a component's own file lacks."""
    fitting = []
    for _, each in companions(path, component):
        found = each.found
        if each.spec == denoiser.spec and bool(each.adds) == adding and found.layout.fits(config_of(found, {}), config):
            fitting.append(found)
    return min(fitting, key=_preference, default=None)


def _preference(found: Found) -> tuple[int, str]:
    """The one with the most bits goes first, then by name."""
    return -sum(tensor.nbytes for tensor in found.tensors.values()), found.path.name


def _manifests_with_parts_for(manifest: Manifest) -> list[Manifest]:
    """The family's whose text encoders and autoencoder, as published, go with a manifest's denoiser."""
    known = [each for each in manifests().values() if each.family == manifest.family and each.repo]
    return [each for each in known if all(_published_layouts(manifest, each).values())]


def _published_layouts(manifest: Manifest, source: Manifest) -> dict[str, list[SingleFile]]:
    """By component, the layouts in which what is published with `source` fits the denoiser of a manifest; where one of
    them is not known, all."""
    layouts = layouts_of(family_spec(manifest.family))
    place = next(layout.folder for layout in layouts if layout.manifest is not None)
    denoiser = published_config(manifest, place)
    out: dict[str, list[SingleFile]] = {}
    for layout in layouts:
        if layout.manifest is None and not layout.adds:
            config = published_config(source, layout.folder)
            flat = {**config, **config.get("text_config", {})}
            fits = not denoiser or not flat or layout.fits(flat, denoiser)
            out.setdefault(layout.component, []).extend([layout] if fits else [])
    return out


def _cached(
    spec: FamilySpec,
    sources: Sequence[Manifest],
    place: str,
    is_there: Callable[[Path], bool],
    mirrors: Iterable[str] = (),
) -> Path | None:
    """A folder of the model's repository, or of one that has the same, in the hub's cache."""
    cache = cache_folder()
    repositories = [(known.repo, known.revision or "main") for known in sources]
    for repo, revision in [*repositories, *((repo, "main") for repo in (*spec.mirrors, *mirrors))]:
        snapshot = cached(cache, repo, revision) if repo else None
        if snapshot and is_there(snapshot / place):
            return snapshot / place
    return None


def _is_complete(folder: Path) -> bool:
    """Whether a component is there, with all of its files."""
    try:
        return (folder / "config.json").is_file() and bool(open_checkpoint(folder))
    except (CheckpointError, MissingFileError):
        return False


def _has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def _check_leftover(path: Path, found: Sequence[Found]) -> None:
    """Every tensor of the file belongs to a component of the one family, or is a known marker."""
    taken = {name for each in found for name in each.names}
    others = (name for name in open_checkpoint(path).tensors if name not in taken)
    left = sorted(name for name in others if name.rpartition(".")[2] not in MARKERS)
    if left:
        raise CheckpointError(
            f"{path}: {len(left)} tensors belong to no part of the model ({listed(left)}): the file is of "
            "another model or version, or holds more than one. Take another file."
        )


def model_folder_of(path: Path) -> Path | None:
    """The folder of a model of which a file is a component."""
    folder = path.absolute().parent.parent
    is_component = (path.parent / "config.json").is_file()
    return folder if is_component and any((folder / name).is_file() for name in RECOGNIZED_BY) else None


def _not_a_model(path: Path, components: Sequence[Component]) -> ConfigError:
    component = components[0].found.layout.component if components else ""
    if component in GIVEN_AS:
        what = "this file" if component == NETWORK else "its folder"
        return ConfigError(
            f"{path} is {components[0].found.layout.title}; give a model, and {what} as {GIVEN_AS[component]} with a "
            "picture."
        )
    if folder := model_folder_of(path):
        return ConfigError(f"{path} is a part of the model in {folder}; give that folder.")
    if components:
        titles = ", ".join(dict.fromkeys(each.spec.title for each in components))
        return ConfigError(
            f"{path} is {components[0].found.layout.title}, a part of {titles}; give the diffusion model's file, and "
            "this one is found next to it."
        )
    tensors: Mapping[str, Tensor] = open_checkpoint(path).tensors
    families = ", ".join(spec.title for spec in family_specs() if spec.single_files)
    return ConfigError(
        f"{path} is not recognized: its tensors ({listed(list(tensors))}) are those of no model that this "
        f"library opens from a single file ({families})."
    )


def missing_line(assembly: Assembly) -> str:
    """What is not there, and how to get it without asking for access."""
    places = assembly.missing
    parts_of = _published_layouts(assembly.manifest, assembly.manifest)
    titles = {component: layouts[0].title for component, layouts in parts_of.items() if layouts}
    what = ", ".join(f"{place} ({titles[place]})" if place in titles else place for place in places)
    folder, parts = folder_of(assembly.path) or chosen_folder(), [place for place in places if place in titles]
    put = f" put files of {_put_into(folder, parts)}, or" if folder and parts else ""
    return (
        f"{assembly.path} needs {what}: neither in it, nor in ComfyUI's folder, nor in the hub's cache;{put} run "
        f"{'; and '.join(_downloads(assembly))}."
    )


def _downloads(assembly: Assembly) -> Iterator[str]:
    """The commands that get what is missing; a tokenizer may be had elsewhere than the weights."""
    manifest, spec = assembly.manifest, family_spec(assembly.manifest.family)
    known = (manifest, *_manifests_with_parts_for(manifest))
    free = next((repo for repo in (*(each.repo for each in known if not each.gated), *spec.mirrors) if repo), None)
    elsewhere = None if free else manifest.extras.get(TOKENIZER_REPO)
    tokenizers = [place for place in assembly.missing if elsewhere and place in spec.tokenizers]
    if rest := [place for place in assembly.missing if place not in tokenizers]:
        access = NO_ACCESS if free else "after its terms are accepted on its page"
        yield f"`hf download {free or manifest.repo} --include {_patterns(spec, rest)}`, {access}"
    if tokenizers:
        yield f"`hf download {elsewhere} --include {_patterns(spec, tokenizers)}`, {NO_ACCESS}"


def _patterns(spec: FamilySpec, places: Sequence[str]) -> str:
    published = [spec.tokenizers.get(place, place) for place in places]
    names = [name for place in published for name in (TOKENIZER_FILES if place == "." else (f"{place}/*",))]
    return " ".join(f"'{name}'" for name in names)


def _put_into(folder: ComfyFolder, parts: Sequence[str]) -> str:
    """In which of ComfyUI's folders the parts' files belong."""
    encoders = [part for part in parts if part != "vae"]
    groups = ((encoders, ENCODERS[0]), (["vae"] if "vae" in parts else [], VAES[0]))
    return " and ".join(f"{' and '.join(group)} into {folder.models / kind}" for group, kind in groups if group)
