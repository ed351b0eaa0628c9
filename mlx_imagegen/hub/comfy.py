"""A ComfyUI installation's folder of models: which files are in it, by what they are for.

In: ComfyUI's folder or its `models` folder, named with a call or by the setting MLX_IMAGEGEN_COMFY; or any file that is
in one. Out: `ComfyFolder`. Must not know: what is in a file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingFileError
from ..paths import expanded

SETTING = "MLX_IMAGEGEN_COMFY"
MODELS, ENCODERS, VAES = ("diffusion_models", "unet", "checkpoints"), ("text_encoders", "clip"), ("vae",)
LORAS = ("loras",)
FOLDERS = (*MODELS, *ENCODERS, *VAES, *LORAS, "controlnet")
SUFFIXES = (".safetensors", ".sft", ".gguf")
_chosen: ContextVar[Path | None] = ContextVar("comfy folder", default=None)


@dataclass(frozen=True)
class ComfyFolder:
    models: Path  # the folder that has diffusion_models, vae …

    def files(self, kinds: tuple[str, ...]) -> list[Path]:
        """Of these folders and those in them, without hidden ones."""
        roots = (self.models / kind for kind in kinds)
        found = (path for root in roots if root.is_dir() for path in sorted(root.rglob("*")))
        return [path for path in found if is_model_file(path) and not path.name.startswith(".")]

    def named(self, name: str, kinds: tuple[str, ...] = MODELS) -> Path | None:
        """A file of these folders by its name or its path from there, with or without the ending."""
        for path in self.files(kinds):
            root = next(self.models / kind for kind in kinds if path.is_relative_to(self.models / kind))
            inner = path.relative_to(root)
            if name in (path.name, path.stem, inner.as_posix(), inner.with_suffix("").as_posix()):
                return path
        return None


def is_model_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def comfy_folder(path: Path) -> ComfyFolder:
    """From ComfyUI's own folder, or the one of its models."""
    path = expanded(path)
    for models in (path / "models", path):
        if any((models / kind).is_dir() for kind in (*MODELS, *ENCODERS, *VAES)):
            return ComfyFolder(models)
    raise MissingFileError(
        f"{path} is not a folder of ComfyUI's models: it has none of {', '.join((*MODELS, *ENCODERS, *VAES))}. Give "
        f"the folder that has them (--comfy, or the setting {SETTING})."
    )


def chosen_folder() -> ComfyFolder | None:
    """The one of the call, or of the setting."""
    named = _chosen.get() or os.environ.get(SETTING)
    return comfy_folder(Path(named)) if named else None


def folder_of(file: Path) -> ComfyFolder | None:
    """The folder of models that a file is in, if it is in one."""
    inner = next((parent for parent in file.absolute().parents if parent.name in FOLDERS), None)
    return ComfyFolder(inner.parent) if inner else None


@contextmanager
def using_folder(path: "str | Path | None") -> Iterator[None]:
    """For as long as the block runs; None changes nothing."""
    token = _chosen.set(expanded(path) if path is not None else _chosen.get())
    try:
        if path is not None:
            comfy_folder(expanded(path))  # refused here, not when a file is not found
        yield
    finally:
        _chosen.reset(token)
