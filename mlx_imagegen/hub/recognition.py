"""What a model's name means: a manifest's name, a Hugging Face repository id, or a local folder.

Out: a `Model`, the manifest and, where the files are here already, the folder. A folder is recognized by its own files.
Must not know: tensors, downloads.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingFileError, UnknownModelError
from ..escaping import article, shown
from ..families import family_spec, family_specs
from ..loading.folder import ModelFolder
from ..paths import expanded
from .comfy import ENCODERS, MODELS, SUFFIXES, VAES, chosen_folder, is_model_file
from .manifest import KINDS, Manifest, Model, manifests
from .mlx_folders import component_folders
from .record import record_of
from .single_files import open_single_file


def find(model: str) -> Model:
    """A manifest's name, a repository id, a folder (with config files in it), or a diffusion model's file."""
    known = manifests()
    if not model.strip():
        raise UnknownModelError(
            f"the model's name is empty; give a folder, a repository id or one of: {_examples(known)}."
        )
    if model in known:
        return Model(known[model], known[model].bundled, model)
    folder = expanded(model)
    if folder.is_dir() and component_folders(folder):
        manifest, assembled = open_single_file(folder)
        return Model(manifest, assembled, requested_as(model), folder)
    if folder.is_dir():
        return Model(recognize(folder), folder, requested_as(model))
    if (file := _single_file(model)) is not None:
        manifest, folder = open_single_file(file)
        return Model(_with_own_numbers(manifest, ModelFolder(folder)), folder, requested_as(model), file)
    by_repo = {
        manifest.repo.lower(): manifest
        for manifest in known.values()
        if manifest.repo and "lora" not in manifest.extras
    }
    if model.lower() in by_repo:
        return Model(by_repo[model.lower()], None, model)
    if folder.exists() or model.startswith(("/", "./", "../", "~")) or folder.suffix.lower() in SUFFIXES:
        chosen = chosen_folder()
        there = f", nor a file of a diffusion model in {chosen.models}" if chosen else ""
        raise MissingFileError(
            f"{shown(model, 160)} is not a folder here, nor a .safetensors or .gguf file{there}. Give a model folder, "
            f"a repository id or one of: {_examples(known)}."
        )
    if other := next((kind for kind in KINDS if model in manifests(kind)), None):
        families = ", ".join(family_spec(name).title for name in manifests(other)[model].families)
        raise UnknownModelError(
            f"{model} is not a model but {article(other)} {other}: it goes with a model of {families}."
        )
    near = difflib.get_close_matches(model, [*known, *by_repo], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known models: {_examples(known)}."
    raise UnknownModelError(
        f"no model is called '{shown(model)}'; {hint} A local folder or a repository id of one of these works too."
    )


def _examples(known: Mapping[str, Manifest]) -> str:
    """One published model of each family, that with the shortest name, and a built-in one."""
    shipped = [name for name, manifest in known.items() if manifest.folder]
    published = sorted((name for name in known if name not in shipped), key=len, reverse=True)
    shortest = {known[name].family: name for name in published}
    return f"{', '.join([*shipped[:1], *sorted(shortest.values())])} … (mlx-imagegen models lists all)"


def requested_as(model: str) -> str:
    """A model's name for records: as the user said it, but a folder in a way that means the same from everywhere."""
    if model in manifests():
        return model
    folder = expanded(model)
    place = folder if folder.is_dir() else _single_file(model)
    return str(place.absolute()) if place else model


def _single_file(model: str) -> Path | None:
    """A path, or a name in the ComfyUI folder that is set; of a part too, so that it is refused as one."""
    path = expanded(model)
    if is_model_file(path):
        return path
    chosen = chosen_folder()
    return chosen.named(model) or chosen.named(model, (*ENCODERS, *VAES)) if chosen else None


def recognize(folder: Path) -> Manifest:
    """The nearest manifest for a local folder, by its own files; what they say of themselves goes before it."""
    record, files = record_of(folder), ModelFolder(folder)
    if record.get("manifest") in manifests():
        manifest = as_folded(manifests()[record["manifest"]], record.get("folded"))
        # The converter has merged a manifest's own LoRA: loading must not merge it again, but keeps its schedule.
        merged = {"lora": None} if "lora" in manifest.extras else {}
        manifest = replace(manifest, folder=None, extras=manifest.extras | merged)
    else:
        manifest = manifests()[_nearest(files)]
    return _with_own_numbers(manifest, files)


def _with_own_numbers(manifest: Manifest, folder: ModelFolder) -> Manifest:
    own_numbers = family_spec(manifest.family).own_numbers
    return own_numbers(manifest, folder) if own_numbers else manifest


def as_folded(manifest: Manifest, folded: dict[str, Any] | None) -> Manifest:
    """A folder that was folded for one schedule can do no other, so that this is its default."""
    if not folded:
        return manifest
    size = dict(zip(("width", "height"), folded.get("size") or (), strict=False))
    return replace(manifest, defaults=replace(manifest.defaults, steps=folded["steps"], **size))


def _nearest(folder: ModelFolder) -> str:
    specs = family_specs()
    name = next(filter(None, (spec.recognize(folder) for spec in specs)), None)
    if name is not None:
        return name
    if described := folder.described():
        supported = ", ".join(name for spec in specs for name in spec.classes)
        raise ConfigError(
            f"{folder.path}: {'; '.join(described)}, which is not an architecture this library has "
            f"({shown(supported, 200)})."
        )
    if any((models / kind).is_dir() for models in (folder.path, folder.path / "models") for kind in MODELS):
        raise ConfigError(
            f"{folder.path} is a ComfyUI folder of many models; give the path of one of its files, which "
            f"`mlx-imagegen models --comfy {folder.path}` lists."
        )
    raise MissingFileError(
        f"{folder.path} has no model_index.json, config.json or transformer/config.json, so it cannot be recognized as "
        "a model. Point to the folder that holds the whole repository, config files included."
    )
