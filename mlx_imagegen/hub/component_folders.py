"""Components found in single files, as folders in the diffusers layout that families open.

In: what was found of a component in a file, and what is published with its model. Out: its config.json, and an index of
where each tensor's rows are; nothing of the weights is copied or read. Must not know: which files go together, any
family's names.
"""

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..documents import read_json, write_json
from ..loading.gguf import is_gguf
from ..loading.parts import FILES, INDEX, Part, index, unpacked_index
from ..loading.single_file import Found
from .manifest import Manifest
from .mlx_folders import saved_packings
from .tensor_shapes import read_tensor_shapes


def component_config(found: Found, manifest: Manifest) -> dict[str, Any]:
    base = published_config(manifest, found.layout.folder)
    return config_of(found, {**base, **found.layout.of_manifest.get(manifest.name, {})})


def published_config(manifest: Manifest, place: str) -> dict[str, Any]:
    """A component's config.json in the model's repository; empty where the package does not have it."""
    config: dict[str, Any] = published_files(manifest).get((Path(place) / "config.json").as_posix(), {})
    return config


def write_component(folder: Path, found: Found, config: Mapping[str, Any], addition: Found | None = None) -> None:
    """config.json and the index of a component's tensors. `addition`: what its file lacks."""
    place = folder / found.layout.folder
    parts, packed = _parts_of(found)
    if addition:
        config = _over(config, config_of(addition, {}))
        more, codes = _parts_of(addition)
        parts, packed = [*parts, *more], packed | codes
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "config.json", {**config, **({"quantization": packed} if packed else {})})
    write_json(place / INDEX, index(parts))


def _parts_of(found: Found) -> tuple[list[Part], dict[str, Any]]:
    """A file's tensors by the names of the component's folder, and how those are packed that stay so."""
    formats = {name.removesuffix(".weight"): tensor.packing for name, tensor in found.tensors.items() if tensor.packing}
    saved = saved_packings(found.path, found.tensors) if found.path.is_dir() else {}
    kept = {**saved, **formats}
    dense = {name: packing for name, packing in kept.items() if re.search(found.layout.dense, name)}
    parts = list(found.parts(dense))
    packed = {
        part.name.removesuffix(".weight"): asdict(kept[module])
        for part in parts
        if part.name.endswith(".weight")
        and (module := part.tensor[len(found.prefix) :].removesuffix(".weight")) in kept
        and module not in dense
    }
    return parts, packed


def sources(folder: Path) -> dict[str, Path]:
    """The files in which a folder that was put together here has its tensors, by component and name; none of another
    folder."""
    found: dict[str, Path] = {}
    for path in folder.glob(f"**/{INDEX}"):
        component = path.parent.relative_to(folder)
        found |= {(component / Path(file).name).as_posix(): Path(file) for file in read_json(path)[FILES]}
    return found


@functools.lru_cache(maxsize=8)
def unpacked_folder(folder: Path) -> Path | None:
    """The same model with the numbers of all weights, for what changes them; None for a folder that was not put
    together here, or has nothing packed as GGUF is."""
    indexes = {path.parent.relative_to(folder): read_json(path) for path in folder.glob(f"**/{INDEX}")}
    indexes = {place: data for place, data in indexes.items() if all(is_gguf(Path(file)) for file in data[FILES])}
    configs = {place: read_json(folder / place / "config.json") for place in indexes}
    if not any("quantization" in config for config in configs.values()):
        return None
    twin = temporary_folder()
    shutil.copytree(folder, twin, symlinks=True, dirs_exist_ok=True)
    for place, config in configs.items():
        packed = config.pop("quantization", {})
        write_json(twin / place / "config.json", config)
        write_json(twin / place / INDEX, unpacked_index(indexes[place], packed))
    return twin


def temporary_folder() -> Path:
    """Removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="mlx-imagegen-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def config_of(found: Found, base: Mapping[str, Any]) -> dict[str, Any]:
    """What a component's file says over what is published: by its shapes, and in NAME.json next to it, for models of
    unusual numbers: a config.json, or several by component."""
    path = found.path / "config.json" if found.path.is_dir() else found.path.with_suffix(".json")
    own = read_json(path) if path.is_file() else {}
    by_component = own.get(found.layout.component)
    shapes = {} if found.path.is_dir() else found.config  # a saved folder's weights may be packed, its sizes are usual
    return {**_over(base, shapes), **(by_component if isinstance(by_component, dict) else own)}


def _over(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`more` in place of what `base` has, block by block."""
    blocks = {key: _over(base[key], value) for key, value in more.items() if isinstance(value, dict) and key in base}
    return {**base, **more, **blocks}


def published_files(manifest: Manifest) -> dict[str, Any]:
    """The small files of the published model, as far as they are in the package."""
    return {} if manifest.tensor_shapes is None else _files_of(manifest.tensor_shapes)


@functools.lru_cache(maxsize=16)
def _files_of(tensor_shapes: str) -> dict[str, Any]:
    files: dict[str, Any] = read_tensor_shapes(tensor_shapes)["files"]
    return files
