"""Gets a checkpoint's files out of the Hugging Face cache, and downloads what is not there yet.

In: a manifest. Out: the folder that holds the files it asks for. A complete folder in the cache is used without asking
the network. Anything else is downloaded into huggingface_hub's own cache, after saying how much it is and under which
licence, and only if the disk has room. Files appear in the cache under their name only when they are whole, so that an
interrupted download shows as missing files here and as missing shards in checkpoint.py.
Must not know: what is in the files.
"""

import errno
import fnmatch
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import DownloadError, UnknownModel
from .config import read_json
from .manifest import RECOGNISED_BY, Manifest, Model, find, recognise, revision_of

GB = 1e9
SPARE_BYTES = 2 * 10**9  # left free on the disk: a system without any room fails in stranger places
LOGIN = "hf auth login"
SITE = "https://huggingface.co"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    name: str
    nbytes: int
    here: bool  # whole in the cache already


class Hub(Protocol):
    """The one edge to the network; tests put their own in its place."""

    cache: Path

    def is_whole(self, repo: str, revision: str, patterns: Sequence[str]) -> bool:
        """Whether the cache holds all that matches, as far as the client knows without the network."""
        ...

    def plan(self, repo: str, revision: str, patterns: Sequence[str]) -> list[RemoteFile]: ...

    def download(self, repo: str, revision: str, patterns: Sequence[str]) -> Path: ...


def tell_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def locate(model: str, tell: Tell = tell_stderr, hub: Hub | None = None) -> tuple[Model, Path]:
    """What `model` means and the folder with its files, downloaded if need be.

    A repository without a manifest of its own (a fine-tune, a mirror) is told by its config files, as a folder is.
    """
    try:
        found = find(model)
    except UnknownModel:
        if not REPOSITORY.fullmatch(model):
            raise
        found = _adopt(model, hub or HuggingFace())
    return found, found.folder or fetch(found.manifest, tell, hub)


def local_folder(manifest: Manifest, hub: Hub | None = None) -> Path | None:
    """The manifest's files, if they are here and whole; asks nobody."""
    if not manifest.repo or not manifest.revision:
        return None
    folder = cached((hub or HuggingFace()).cache, manifest.repo, manifest.revision)
    return folder if folder and not absent(folder, manifest.download) else None


def fetch(manifest: Manifest, tell: Tell = tell_stderr, hub: Hub | None = None) -> Path:
    """The folder with the manifest's files."""
    if manifest.repo is None or manifest.revision is None:
        raise DownloadError(
            f"{manifest.name} names no repository to download from; give the folder that holds its files."
        )
    return fetch_files(manifest.repo, manifest.revision, manifest.download, manifest, tell, hub)


def fetch_files(
    repo: str,
    revision: str,
    patterns: Sequence[str],
    manifest: Manifest,
    tell: Tell = tell_stderr,
    hub: Hub | None = None,
) -> Path:
    """The cached folder of `repo` at `revision`, with every file that matches `patterns`."""
    hub = hub or HuggingFace()
    folder = cached(hub.cache, repo, revision)
    if folder and not absent(folder, patterns) and hub.is_whole(repo, revision, patterns):
        return folder
    with _explained(manifest, repo, folder, patterns):
        files = hub.plan(repo, revision, patterns)
        _check_complete(repo, revision, patterns, files)
        wanted = sum(file.nbytes for file in files if not file.here)
        _check_room(hub.cache, wanted, manifest)
        tell(
            f"Downloading {manifest.title}: {wanted / GB:.1f} GB in {sum(not file.here for file in files)} files from"
            f" {repo} into {hub.cache}. Licence: {manifest.licence}."
        )
        return hub.download(repo, revision, patterns)


def cached(cache: Path, repo: str, revision: str) -> Path | None:
    """The snapshot of `repo` in the cache, whole or not."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    return folder if folder.is_dir() else None


def absent(folder: Path, patterns: Sequence[str]) -> list[str]:
    """What a folder lacks: patterns that no file matches, and shards that an index names."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    lacking = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    for name in names:
        if name.endswith(".index.json") and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            shards = set(read_json(folder / name).get("weight_map", {}).values())
            lacking += sorted(
                f"{Path(name).parent / shard}" for shard in shards if not (folder / name).with_name(shard).is_file()
            )
    return lacking


def _adopt(repo: str, hub: Hub) -> Model:
    """A repository that no manifest names: its config files say which manifest is the nearest."""
    stranger = Manifest(repo, repo, "", find("flux-schnell").manifest.defaults, repo)
    folder = cached(hub.cache, repo, "main")
    if not folder or not any((folder / name).is_file() for name in RECOGNISED_BY):
        with _explained(stranger, repo, folder, RECOGNISED_BY):
            folder = hub.download(repo, "main", RECOGNISED_BY)
    manifest = replace(
        recognise(folder), repo=repo, revision=revision_of(folder) or "main", licence=f"see {SITE}/{repo}", gated=False
    )
    return Model(manifest, None, repo)


def _check_complete(repo: str, revision: str, patterns: Sequence[str], files: Sequence[RemoteFile]) -> None:
    names = [file.name for file in files]
    lacking = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if lacking:
        raise DownloadError(
            f"{repo} at revision {revision} has no {', '.join(lacking)}; the repository is not laid out as this library"
            " reads it. Download it by other means and give the folder."
        )


def _check_room(cache: Path, wanted: int, manifest: Manifest) -> None:
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if wanted + SPARE_BYTES > free:
        raise DownloadError(
            f"{manifest.title} needs {wanted / GB:.1f} GB more (and {SPARE_BYTES / GB:.0f} GB to spare), and {place}"
            f" has {free / GB:.1f} GB free. Free some room, or set HF_HOME to a folder on a larger disk."
        )


@contextmanager
def _explained(manifest: Manifest, repo: str, folder: Path | None, patterns: Sequence[str]) -> Iterator[None]:
    """Turns whatever the hub's client raises into a DownloadError that says how to go on.

    Its HTTP library's own exceptions have changed with the client's versions, so everything that is not ours is turned.
    """
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        # A look at what would be downloaded fails with a DryRunError, whatever the reason was.
        reason = error.__cause__ if type(error).__name__ == "DryRunError" and error.__cause__ else error
        message = _refusal(manifest, repo, reason) or _unreachable(manifest, repo, folder, patterns, reason)
        raise DownloadError(message) from error


def _refusal(manifest: Manifest, repo: str, error: BaseException) -> str | None:
    """What the hub or the disk said no to, if that is known."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError) or (manifest.gated and _status(error) in (401, 403)):
        return (
            f"{manifest.title} is gated: its owner gives access on request. Ask for it at {SITE}/{repo} (signed in),"
            f" then run `{LOGIN}` with a token of that account and try again."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository {SITE}/{repo}, or it is private; check the name, or run `{LOGIN}` if you have"
            " access."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {manifest.revision} any more; update mlx-imagegen, or give a local folder."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk became full while {manifest.title} was downloaded; free some room and run it again: it goes on"
            " from there."
        )
    return None


def _unreachable(
    manifest: Manifest, repo: str, folder: Path | None, patterns: Sequence[str], error: BaseException
) -> str:
    state = "it is not in the cache"
    if folder:
        lacking = absent(folder, patterns)
        state = "its copy in the cache " + (f"lacks {', '.join(lacking[:3])}" if lacking else "is not complete")
    reason = " ".join(str(error).split())[:200] or "no reason given"
    return (
        f"{manifest.title} cannot be downloaded ({type(error).__name__}: {reason}), and {state}. Connect to the network"
        f" (and unset HF_HUB_OFFLINE) and run it again, or give the folder that holds {repo}'s files."
    )


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


class HuggingFace:
    """The real hub. Its client is imported only when something has to be looked up."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self.cache = Path(constants.HF_HUB_CACHE).expanduser()

    def is_whole(self, repo: str, revision: str, patterns: Sequence[str]) -> bool:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), cache_dir=self.cache, local_files_only=True
            )
        except LocalEntryNotFoundError:  # its newer versions keep the repository's listing and compare with it
            return False
        return True

    def plan(self, repo: str, revision: str, patterns: Sequence[str]) -> list[RemoteFile]:
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), cache_dir=self.cache, dry_run=True
        )
        return [RemoteFile(file.filename, file.file_size or 0, not file.will_download) for file in found]

    def download(self, repo: str, revision: str, patterns: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), cache_dir=self.cache))
