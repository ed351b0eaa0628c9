"""Which models' repositories lie in the Hugging Face cache, how large they are, and their removal.

Out: `Downloaded`, one a repository that a manifest names or that a family recognizes; what other programs keep there is
left out. Must not know: the network, what is in the files.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImagegenError, MissingFileError, OutputError, RequestError
from .download import absent
from .manifest import Manifest, manifests
from .recognition import find, recognize
from .snapshots import cache_folder, cached, storage_folder


@dataclass(frozen=True)
class Downloaded:
    repo: str
    storage: Path  # its folder in the cache
    nbytes: int
    models: tuple[str, ...]  # manifests that need it
    is_complete: bool  # for each of them


def downloaded() -> list[Downloaded]:
    cache = cache_folder()
    named = _named_repositories()
    names = [path.name.removeprefix("models--") for path in sorted(cache.glob("models--*")) if path.is_dir()]
    rows = (_downloaded(cache, name.replace("--", "/", 1), named) for name in names)
    return [row for row in rows if row]


def find_downloaded(model: str) -> Downloaded:
    """The repository of a manifest's name, or of a repository id."""
    repo = _repository(model)
    row = _downloaded(cache_folder(), repo, _named_repositories())
    if row is None:
        raise MissingFileError(f"{model} is not in {cache_folder()}; `mlx-imagegen models --cached` lists what is.")
    return row


def remove(row: Downloaded) -> None:
    """Everything of the repository, all its revisions."""
    try:
        shutil.rmtree(row.storage)
    except OSError as error:
        raise OutputError(
            f"{row.storage} could not be removed ({error.strerror or error}); see to its permissions, or remove it "
            "yourself."
        ) from error


def _repository(model: str) -> str:
    try:
        found = find(model)
    except ImagegenError:
        if model.count("/") == 1 and not model.startswith((".", "/", "~")):
            return model  # a fine-tune, which no manifest names
        raise
    if found.manifest.bundled:
        raise RequestError(f"{model} is built in: there is no download of it to remove.")
    if found.folder or found.manifest.repo is None:
        raise RequestError(f"{model} is a folder or file of yours, not a download; remove it yourself.")
    return found.manifest.repo


def _named_repositories() -> dict[str, list[Manifest]]:
    """Each repository that manifests name, for a model or its LoRA."""
    out: dict[str, list[Manifest]] = {}
    for manifest in manifests().values():
        lora = manifest.extras.get("lora", {})
        for repo in filter(None, [manifest.repo, lora.get("repo")]):
            out.setdefault(repo, []).append(manifest)
    return out


def _downloaded(cache: Path, repo: str, named: dict[str, list[Manifest]]) -> Downloaded | None:
    storage = storage_folder(cache, repo)
    if not storage.is_dir():
        return None
    if repo not in named and not _is_recognized(cached(cache, repo, "main")):
        return None
    known = named.get(repo, [])
    complete = all(_is_here(cache, repo, manifest) for manifest in known)
    files = (path for path in storage.rglob("*") if path.is_file() and not path.is_symlink())
    nbytes = sum(path.lstat().st_size for path in files)
    return Downloaded(repo, storage, nbytes, tuple(manifest.name for manifest in known), complete)


def _is_recognized(folder: Path | None) -> bool:
    try:
        return folder is not None and bool(recognize(folder))
    except (ImagegenError, OSError):  # another program's
        return False


def _is_here(cache: Path, repo: str, manifest: Manifest) -> bool:
    """Whether the files that the manifest takes from this repository are."""
    own = repo == manifest.repo
    lora = manifest.extras.get("lora", {})
    revision, patterns = (manifest.revision, manifest.download) if own else (lora["revision"], [lora["file"]])
    folder = cached(cache, repo, str(revision))
    return folder is not None and not absent(folder, patterns)
