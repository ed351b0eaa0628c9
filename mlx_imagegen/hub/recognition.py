"""What a model's name means: a manifest's name, a Hugging Face repository id, or a local folder.

Out: a `Model`, the manifest and, where the files are here already, the folder. A folder is recognized by its own files.
Must not know: tensors, downloads.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingFileError, UnknownModelError
from ..loading.config import read_json
from .manifest import Manifest, Model, manifests
from .record import record_of


def find(model: str) -> Model:
    """A manifest's name, a repository id, or a folder (with config files in it)."""
    known = manifests()
    if model in known:
        return Model(known[model], known[model].bundled, model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Model(recognise(folder), folder, requested_as(model))
    by_repo = {
        manifest.repo.lower(): manifest
        for manifest in known.values()
        if manifest.repo and "lora" not in manifest.extras
    }
    if model.lower() in by_repo:
        return Model(by_repo[model.lower()], None, model)
    if folder.exists() or model.startswith(("/", "./", "../", "~")):
        raise MissingFileError(
            f"{model} is not a folder here. Give a model folder, a repository id or one of: {', '.join(known)}."
        )
    near = difflib.get_close_matches(model, [*known, *by_repo], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known models: {', '.join(known)}."
    raise UnknownModelError(
        f"no model is called '{model}'; {hint} A local folder or a repository id of one of these works too."
    )


def requested_as(model: str) -> str:
    """A model's name for records: as the user said it, but a folder in a way that means the same from everywhere."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if model not in manifests() and folder.is_dir() else model


# What a folder's own files call its pipeline or architecture -> (family, the manifest its defaults come from).
PIPELINES = {
    "FluxPipeline": "flux1",
    "QwenImagePipeline": "qwen_image",
    "QwenImageEditPipeline": "qwen_image",
    "QwenImageEditPlusPipeline": "qwen_image",
}
ARCHITECTURES = {"Qwen3VLForConditionalGeneration": "hidream_o1"}
TRANSFORMERS = {"FluxTransformer2DModel": "flux1", "QwenImageTransformer2DModel": "qwen_image"}
RECOGNISED_BY = ("model_index.json", "config.json", "transformer/config.json")  # the files that tell


def recognise(folder: Path) -> Manifest:
    """The nearest manifest for a local folder, by its own config files."""
    record = record_of(folder)
    if record.get("manifest") in manifests():
        manifest = as_folded(manifests()[record["manifest"]], record.get("folded"))
        # The converter has merged a manifest's own LoRA; loading must not merge it once more, but keeps its schedule.
        merged = {"lora": None} if "lora" in manifest.extras else {}
        return replace(manifest, folder=None, extras=manifest.extras | merged)
    nearest = {"flux1": _nearest_flux, "qwen_image": _nearest_qwen, "hidream_o1": _nearest_hidream}
    return _with_own_numbers(manifests()[nearest[_family_of(folder)](folder)], folder)


def as_folded(manifest: Manifest, folded: dict[str, Any] | None) -> Manifest:
    """A folder that was folded for one schedule can do no other, so that this is its default."""
    if not folded:
        return manifest
    size = dict(zip(("width", "height"), folded["size"] or (), strict=False))
    return replace(manifest, defaults=replace(manifest.defaults, steps=folded["steps"], **size))


def _with_own_numbers(manifest: Manifest, folder: Path) -> Manifest:
    """A small HiDream-O1, trained for small pictures and to a noise scale of its own, says so in its config.json."""
    block = read_json(folder / "config.json").get("hidream_o1") if manifest.family == "hidream_o1" else None
    if not isinstance(block, dict):
        return manifest
    scale = block.get("noise_scale")
    own = {"sampling": manifest.extras["sampling"] | ({} if scale is None else {"noise_scale": [scale, scale]})}
    own["sizes"] = manifest.extras["sizes"] | {"least_patches": 1}
    return replace(manifest, extras=manifest.extras | own)


def _family_of(folder: Path) -> str:
    """The family, from model_index.json, config.json, transformer/config.json, or the original single file's name."""
    seen = []
    for name, field_name, table in (
        ("model_index.json", "_class_name", PIPELINES),
        ("config.json", "architectures", ARCHITECTURES),
        ("transformer/config.json", "_class_name", TRANSFORMERS),
    ):
        if not (folder / name).is_file():
            continue
        config = read_json(folder / name)
        if "hidream_o1" in config:
            return "hidream_o1"
        value = config.get(field_name)
        value = value[0] if isinstance(value, list) and value else value
        if value in table:
            return table[value]
        seen.append(f"{name} says {value}")
    if list(folder.glob("flux1*.safetensors")):
        return "flux1"
    if seen:
        supported = ", ".join([*PIPELINES, *ARCHITECTURES])
        raise ConfigError(f"{folder}: {'; '.join(seen)}, which is not an architecture this library has ({supported}).")
    raise MissingFileError(
        f"{folder} has no model_index.json, config.json or transformer/config.json, so it cannot be told what "
        "model it is. "
        "Point to the folder that holds the whole repository, config files included."
    )


def _nearest_flux(folder: Path) -> str:
    config = folder / "transformer" / "config.json"
    if config.is_file():
        return "flux-dev" if read_json(config).get("guidance_embeds") else "flux-schnell"
    from ..loading.checkpoint import read_header

    single = sorted(folder.glob("flux1*.safetensors"))
    tensors = read_header(single[0])[0] if single else {}  # with neither, opening the model says what is missing
    return "flux-dev" if any(name.startswith("guidance_in.") for name in tensors) else "flux-schnell"


def _nearest_qwen(folder: Path) -> str:
    config, index = folder / "transformer" / "config.json", folder / "model_index.json"
    if config.is_file() and read_json(config).get("zero_cond_t"):
        return "qwen-image-edit-2511"
    pipeline = read_json(index).get("_class_name") if index.is_file() else None
    return {
        "QwenImageEditPipeline": "qwen-image-edit",
        "QwenImageEditPlusPipeline": "qwen-image-edit-2509",
    }.get(str(pipeline), "qwen-image")


def _nearest_hidream(folder: Path) -> str:
    """The three variants' files are alike in every name and number: only the folder's name can tell."""
    name = folder.resolve().name.lower()
    return "hidream-o1-dev-2604" if "2604" in name else "hidream-o1-dev" if "dev" in name else "hidream-o1"
