"""Where control networks, image adapters and upsamplers are: a manifest's name, its repository, or what is here.

In: what the user called it, the parameter that names it, and the model that it is for. Out: a folder with the
repository's files, or the one file that was named.
Must not know: tensors, what networks do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ImagegenError, MissingFileError, RequestError
from ..escaping import article
from ..families import family_spec
from ..paths import expanded
from .abilities import NETWORK_KINDS, networks, networks_of, parameter_of
from .download import Notify, fetch, local_folder, notify_stderr
from .manifest import Manifest, Model, manifests
from .tensor_shapes import shape_only_folder

# What a local folder must hold, by the parameter that names it.
FOLDERS = {
    "control": "config.json and a .safetensors file",
    "redux": "image_encoder, image_embedder and feature_extractor, as in its repository,",
    "upsample": "config.json, .safetensors files, the tokenizer and system_prompts.json",
    "ip_adapter": "the adapter's .safetensors file, and CLIP in image_encoder,",
}


def locate_network(name: str, model: Manifest, parameter: str = "control", tell: Notify = notify_stderr) -> Path:
    """The files, downloaded if need be."""
    manifest = network_to_fetch(name, model, parameter)
    return expanded(name) if manifest is None else local_folder(manifest) or fetch(manifest, tell)


def network_to_fetch(name: str, model: Manifest, parameter: str = "control") -> Manifest | None:
    """None for what is here by its path; raises for what cannot be had."""
    if expanded(name).exists():
        return None
    manifest = find_network(name, model, parameter)
    _check_commit(manifest, parameter)
    return manifest


def network_alone(name: str) -> Model | None:
    """One by its name, to be downloaded before a model needs it; None where there is none."""
    manifest = next((manifests(kind)[name] for kind in NETWORK_KINDS if name in manifests(kind)), None)
    if manifest is None:
        return None
    _check_commit(manifest, parameter_of(manifest))
    return Model(manifest, local_folder(manifest), name)


def _check_commit(manifest: Manifest, parameter: str) -> None:
    if manifest.revision is None:
        raise MissingFileError(
            f"{parameter}: {manifest.name} is not here, and this version knows no commit of {manifest.repo} to "
            "download; download it yourself and give its folder."
        )


@contextmanager
def network_headers(name: str, model: Manifest, parameter: str = "control") -> Iterator[Path]:
    """A folder with the headers, by the published shapes where the files are not here. Nothing is downloaded."""
    path = expanded(name)
    if here := path if path.exists() else local_folder(manifest := find_network(name, model, parameter)):
        yield here
    else:
        with shape_only_folder(manifest) as shapes:
            try:
                yield shapes
            except ImagegenError as error:  # by the name that the user gave: the folder is of this process
                raise type(error)(str(error).replace(str(shapes), manifest.name)) from error


def find_network(name: str, model: Manifest, parameter: str = "control") -> Manifest:
    """By name or repository; raises where it goes with other models."""
    known = networks(parameter)
    by_repo = {manifest.repo: manifest for manifest in known.values() if manifest.repo}
    manifest = known.get(name) or by_repo.get(name)
    fitting, kind = ", ".join(networks_of(model, parameter)) or "none", next(iter(known.values())).kind
    if manifest is None:
        whose = f"those that go with {model.name}" if model.kind == "model" else "known"
        raise RequestError(
            f"{parameter}: '{name}' is neither a folder nor {article(kind)} {kind}'s name; {whose}: {fitting}. A "
            f"folder with {FOLDERS[parameter]} works too."
        )
    if model.family not in manifest.families:
        titles = ", ".join(family_spec(family).title for family in manifest.families)
        raise RequestError(
            f"{parameter}: {manifest.name} goes with {titles}, and {model.name} is another; for this: {fitting}."
        )
    return manifest
