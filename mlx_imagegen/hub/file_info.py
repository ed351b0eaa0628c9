"""What a .safetensors or .gguf file is, from its header alone: family, component, formats, size, what it needs to run;
and what a model's folder is.

In: a file or folder. Out: a dictionary for people and JSON. Must not know: how it is printed, any family's names.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ImagegenError
from ..families import family_spec
from ..loading.checkpoint import open_checkpoint
from ..loading.gguf import is_gguf, read_gguf
from ..loading.safetensors import read_header
from ..loading.single_file import GIVEN_AS
from ..loading.tensor import Tensor
from ..paths import visible
from .mlx_folders import saved_by
from .recognition import find
from .record import record_of
from .single_files import Component, assemble, known_components, missing_line, model_folder_of

GB = 1e9
LORA_WORDS = ("lora_", ".lokr_", ".hada_")
KEPT_METADATA = ("general.architecture", "general.name", "modelspec.title", "modelspec.architecture")


def file_info(path: Path) -> dict[str, Any]:
    tensors, metadata = read_gguf(path, packed=False) if is_gguf(path) else read_header(path)
    info: dict[str, Any] = {
        "file": str(path.absolute()),
        "format": "GGUF" if is_gguf(path) else "safetensors",
        "size": f"{path.stat().st_size / GB:.2f} GB",
        "tensors": len(tensors),
        "dtypes": _formats(tensors),
        **{key: metadata[key] for key in KEPT_METADATA if metadata.get(key)},
    }
    try:
        components = known_components(path)
    except ImagegenError as error:  # of a format that is not read
        return info | {"refused": str(error)}
    if not components:
        is_lora = any(word in name for name in tensors for word in LORA_WORDS)
        folder = model_folder_of(path)
        other = f"a part of the model in {folder}" if folder else "not recognized"
        return info | {"is": "a LoRA: see `mlx-imagegen lora FILE`" if is_lora else other}
    info["is"] = list(dict.fromkeys(each.found.layout.title for each in components))
    info["family"] = list(dict.fromkeys(each.spec.title for each in components))
    info["component"] = list(dict.fromkeys(each.found.layout.component for each in components))
    if prefixes := [each.found.prefix for each in components if each.found.prefix]:
        info["prefixes"] = list(dict.fromkeys(prefixes))
    if any(each.is_denoiser for each in components):
        return info | _needs(path)
    return info | _sizes(components) | _used_by(components)


def folder_info(folder: Path) -> dict[str, Any]:
    """What a model's folder is: by its own files, and by what our converter or mflux noted of its making; or that of a
    control network or an adapter."""
    if network := _network_in(folder):
        return file_info(network)
    manifest = find(str(folder)).manifest
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    about = {
        "folder": str(folder.absolute()), "size": f"{size / GB:.2f} GB", "family": family_spec(manifest.family).title,
        "manifest": manifest.name, "licence": manifest.licence,
    }  # fmt: skip
    return about | saved_by(folder) | record_of(folder) | _damage(folder)


def _damage(folder: Path) -> dict[str, Any]:
    """What would be refused when the folder's weights are read: files that are not whole, shards that are not there."""
    files = [path for path in sorted(folder.rglob("*.safetensors")) if not path.name.startswith(".")]
    cut = {path: line for path in files if (line := _refusal(read_header, path))}
    whole = {path.parent for path in folder.rglob("*.safetensors.index*.json")} - {path.parent for path in cut}
    absent = [line for place in sorted(whole) if (line := _refusal(open_checkpoint, place))]
    lines = [*cut.values(), *absent]
    return {"damaged": lines} if lines else {}


def _refusal(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except ImagegenError as error:
        return str(error)
    return None


def _network_in(folder: Path) -> Path | None:
    """A control network's or an adapter's one file, where the folder is one's."""
    files = visible(folder, "*.safetensors")
    with suppress(ImagegenError):  # of a format that is not read
        if len(files) == 1 and any(each.found.layout.component in GIVEN_AS for each in known_components(files[0])):
            return files[0]
    return None


def _formats(tensors: Mapping[str, Tensor]) -> list[str]:
    counts, sizes = Counter[str](), Counter[str]()
    for tensor in tensors.values():
        counts[tensor.stored_as] += 1
        sizes[tensor.stored_as] += tensor.nbytes
    return [f"{name} {counts[name]} ({size / GB:.2f} GB)" for name, size in sizes.most_common()]


def _needs(path: Path) -> dict[str, Any]:
    """Of a diffusion model: what goes with it, and where that is."""
    try:
        assembly = assemble(path)
    except ImagegenError as error:
        return {"refused": str(error)}
    found = {name: str(part.path) for name, part in assembly.parts.items() if part.path != assembly.path}
    found |= {f"{name}: {part.layout.adds}": str(part.path) for name, part in assembly.additions.items()}
    places = found | {name: str(folder) for name, folder in assembly.folders.items()}
    out = {"manifest": assembly.manifest.name, "goes_with": places}
    return out | ({"missing": missing_line(assembly)} if assembly.missing else {"runs": "yes"})


def _sizes(components: list[Component]) -> dict[str, Any]:
    """Of what runs next to a model."""
    sizes = [each.found.config for each in components if each.found.layout.component in GIVEN_AS]
    return {"sizes": sizes[0]} if sizes else {}


def _used_by(components: list[Component]) -> dict[str, Any]:
    titles = ", ".join(dict.fromkeys(each.spec.title for each in components))
    parameter = GIVEN_AS.get(components[0].found.layout.component)
    return {"used_by": f"{titles}, as {parameter}" if parameter else titles}
