"""Gets a checkpoint's files out of the Hugging Face cache, and downloads what is not there yet.

In: a manifest, or a `Download`. Out: the folder that holds the files it asks for. A complete folder in the cache is
used without asking the network. Anything else is downloaded into huggingface_hub's own cache, after saying how much it
is and under which licence, and only if the disk has room. A file has its name in the cache only when it is whole, so
that an interrupted download shows as missing files, and whole ones are not downloaded again. Within a run the client
goes on in the middle of a file, and a reset connection is tried again here; a killed run's unfinished files start over.
Must not know: what is in the files.
"""

import errno
import fnmatch
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import DownloadError, ImagegenError, UnknownModelError
from ..escaping import listed, one_line
from ..loading.config import read_json
from ..loading.folder import RECOGNIZED_BY
from ..paths import is_file_name
from .checksums import remove_damaged
from .manifest import Manifest, Model, manifests
from .recognition import find, recognize
from .record import COMMIT, revision_of
from .retries import host_of, tell_retries
from .snapshots import cache_folder, cached, remove_orphans

GB = 1e9
SPARE_BYTES = 2 * 10**9  # left free on the disk: a system without free space fails in unexpected places
LOGIN = "hf auth login"
SITE = "https://huggingface.co"
TRIES, PAUSE_SECONDS = 3, 1  # of a download whose connection broke
DROPPED = ("ReadError", "WriteError", "RemoteProtocolError")  # of the client's HTTP library
BUSY = (429, 500, 502, 503, 504)  # what the client asks again for
REACH_SECONDS = 10  # for one answer, whatever it is, before anything is asked of the hub
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Download:
    """Files of a repository, and what to say of them."""

    title: str
    repo: str
    revision: str
    patterns: Sequence[str]
    licence: str
    gated: bool = False


@dataclass(frozen=True)
class RemoteFile:
    name: str
    nbytes: int
    here: bool  # whole in the cache already


class Hub(Protocol):
    """The one edge to the network; tests put their own in its place."""

    cache: Path

    def is_whole(self, wanted: Download) -> bool:
        """Whether the cache holds all that matches, as far as the client knows without the network."""
        ...

    def plan(self, wanted: Download) -> list[RemoteFile]: ...

    def download(self, wanted: Download) -> Path: ...


def notify_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def locate(model: str, tell: Notify = notify_stderr, hub: Hub | None = None) -> tuple[Model, Path]:
    """What `model` means and the folder with its files, downloaded if need be."""
    found = identify(model, hub)
    return found, files_of(found, tell, hub)


def files_of(found: Model, tell: Notify = notify_stderr, hub: Hub | None = None) -> Path:
    """With its files, downloaded if need be."""
    return found.folder or fetch(found.manifest, tell, hub)


def identify(model: str, hub: Hub | None = None) -> Model:
    """What `model` means; no weights are downloaded for it.

    A repository without a manifest of its own (a fine-tune, a mirror) is recognized by its config files, as a folder
    is. `NAME@COMMIT` is a model of the hub as it was at that commit.
    """
    name, commit = _split_commit(model)
    try:
        found = find(name)
    except UnknownModelError:
        if not REPOSITORY.fullmatch(name):
            raise
        found = _adopt(name, hub or HuggingFace(), commit or "main")
    return replace(found, manifest=replace(found.manifest, revision=commit)) if commit else found


def is_local(model: str) -> bool:
    """Whether `model` can be opened without a download; asks nobody. What no name can mean counts as local: it is
    refused when it is opened."""
    name, commit = _split_commit(model)
    try:
        find(name)
    except UnknownModelError:
        if not REPOSITORY.fullmatch(name):
            return True
        folder = cached(cache_folder(), name, commit or "main")
        if not folder or not _has_config(folder):
            return False
    except ImagegenError:
        return True
    found = identify(model)  # its configs are here
    return bool(found.folder or local_folder(found.manifest))


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RECOGNIZED_BY)


def _split_commit(model: str) -> tuple[str, str | None]:
    name, at, commit = model.rpartition("@")
    if at and COMMIT.fullmatch(commit) and (name in manifests() or REPOSITORY.fullmatch(name)):
        return name, commit
    return model, None


def pending_download(found: Model) -> Manifest | None:
    """The manifest of a model that would have to be downloaded, where its published shapes tell what will come; None
    for what is here, and for a fine-tune, whose shapes may be its own."""
    manifest = found.manifest
    published = manifests()[manifest.name]
    own = found.folder or replace(manifest, revision=published.revision) != published
    return None if own or local_folder(manifest) else manifest


def local_folder(manifest: Manifest) -> Path | None:
    """The manifest's files, if they are here and whole; asks nobody."""
    if manifest.bundled or not manifest.repo or not manifest.revision:
        return manifest.bundled
    folder = cached(cache_folder(), manifest.repo, manifest.revision)
    return folder if folder and not absent(folder, manifest.download) else None


def fetch(manifest: Manifest, tell: Notify = notify_stderr, hub: Hub | None = None) -> Path:
    if manifest.repo is None or manifest.revision is None:
        raise DownloadError(
            f"{manifest.name} names no repository to download from; give the folder that holds its files."
        )
    wanted = Download(
        manifest.title, manifest.repo, manifest.revision, manifest.download, manifest.licence, manifest.gated
    )
    return fetch_files(wanted, tell, hub)


def fetch_files(wanted: Download, tell: Notify = notify_stderr, hub: Hub | None = None) -> Path:
    """The repository's folder in the cache, with every file that matches, each as it was published."""
    hub = hub or HuggingFace()
    folder = cached(hub.cache, wanted.repo, wanted.revision)
    if folder and (gone := remove_damaged(folder, wanted.patterns, tell)):
        tell(f"note: {listed(gone)} of {wanted.title} was damaged in the cache, and is downloaded again")
    if not folder or absent(folder, wanted.patterns) or not hub.is_whole(wanted):
        folder = _download(wanted, folder, tell, hub)
    if gone := remove_damaged(folder, wanted.patterns, tell):
        raise DownloadError(
            f"{wanted.title}: {listed(gone)} came with other bytes than were published, and was removed; run it "
            "again to download it."
        )
    return folder


def _download(wanted: Download, folder: Path | None, tell: Notify, hub: Hub) -> Path:
    with _explained(wanted, folder), tell_retries(tell):
        files = hub.plan(wanted)
        if lacking := _unmatched(wanted.patterns, [file.name for file in files]):
            raise DownloadError(
                f"{wanted.repo} at revision {wanted.revision} has no {', '.join(lacking)}; the repository is not laid "
                "out as this library reads it. Download it by other means and give the folder."
            )
        sizes = [file.nbytes for file in files if not file.here]
        _check_room(hub.cache, sum(sizes), wanted.title)
        present = len(files) - len(sizes)
        here = f" ({present} of {len(files)} files are here already)" if present else ""
        tell(
            f"Downloading {wanted.title}: {sum(sizes) / GB:.1f} GB in {len(sizes)} files from {wanted.repo} into"
            f" {hub.cache}{here}. Licence: {wanted.licence}."
        )
        return hub.download(wanted)


def absent(folder: Path, patterns: Sequence[str]) -> list[str]:
    """What a folder lacks: patterns that no file matches, and shards that an index names."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    lacking = _unmatched(patterns, names)
    for name in names:
        if name.endswith(".index.json") and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            shards = filter(is_file_name, _shards(folder / name))
            lacking += sorted(
                f"{Path(name).parent / shard}" for shard in shards if not (folder / name).with_name(shard).is_file()
            )
    return lacking


def _unmatched(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]


def _shards(index: Path) -> set[str]:
    """That it names; the index itself where it cannot be read."""
    try:
        weight_map = read_json(index).get("weight_map")
    except ImagegenError:
        return {index.name + " (damaged)"}
    return set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()


def _adopt(repo: str, hub: Hub, revision: str) -> Model:
    """A repository that no manifest names: its config files say which manifest is the nearest."""
    wanted = Download(repo, repo, revision, RECOGNIZED_BY, f"see {SITE}/{repo}")
    folder = cached(hub.cache, repo, wanted.revision)
    if not folder or not _has_config(folder):
        with _explained(wanted, folder), tell_retries(notify_stderr):
            folder = hub.download(wanted)
    commit = revision_of(folder) or wanted.revision
    manifest = replace(recognize(folder), repo=repo, revision=commit, licence=wanted.licence, gated=False)
    return Model(manifest, None, repo)


def _check_room(cache: Path, nbytes: int, title: str) -> None:
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if nbytes + SPARE_BYTES > free:
        raise DownloadError(
            f"{title} needs {nbytes / GB:.1f} GB more (and {SPARE_BYTES / GB:.0f} GB to spare), and {place}"
            f" has {free / GB:.1f} GB free. Free some room, or set HF_HOME to a folder on a larger disk."
        )


@contextmanager
def _explained(wanted: Download, folder: Path | None) -> Iterator[None]:
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
        raise DownloadError(_refusal(wanted, reason) or _unreachable(wanted, folder, reason)) from error


def _refusal(wanted: Download, error: BaseException) -> str | None:
    """What the hub or the disk said no to, if that is known."""
    from huggingface_hub import errors

    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    if isinstance(error, errors.GatedRepoError) or (wanted.gated and status in (401, 403)):
        return (
            f"{wanted.title} is gated: its owner gives access on request. Ask for it at {SITE}/{wanted.repo} (signed"
            f" in), then run `{LOGIN}` with a token of that account and try again."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository {SITE}/{wanted.repo}, or it is private; check the name, or run `{LOGIN}` if you"
            " have access."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repo} has no revision {wanted.revision} any more; update mlx-imagegen, or give a local folder."
    if status in BUSY:
        why = "it takes no more requests from here for now" if status == 429 else "it is overloaded or down"
        host = host_of(str(getattr(answer, "url", SITE)))
        return f"{wanted.title} cannot be downloaded: {host} answers {status}, {why}. Run it again later."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the folder for downloads cannot be written ({error}); set HF_HOME to a folder that can."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk became full while {wanted.title} was downloaded; free some room and run it again: files "
            "that are whole are kept."
        )
    return None


def _unreachable(wanted: Download, folder: Path | None, error: BaseException) -> str:
    state = "it is not in the cache"
    if folder:
        lacking = absent(folder, wanted.patterns)
        state = "its copy in the cache " + (f"lacks {listed(lacking)}" if lacking else "is not complete")
    reason = one_line(str(error), 110) or "no reason given"
    return (
        f"{wanted.title} cannot be downloaded ({type(error).__name__}: {reason}), and {state}. Connect to the network"
        f" (and unset HF_HUB_OFFLINE) and run it again, or give the folder that holds {wanted.repo}'s files."
    )


def _is_dropped(error: BaseException) -> bool:
    """Whether the connection broke while something was sent; the client itself goes on after other failures."""
    return isinstance(error, ConnectionError) or any(kind.__name__ in DROPPED for kind in type(error).__mro__)


class HuggingFace:
    """The real hub. Its client is imported only when something has to be looked up."""

    def __init__(self) -> None:
        self.cache = cache_folder()
        self._is_reached = False

    def is_whole(self, wanted: Download) -> bool:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            self._snapshot(wanted, local_files_only=True)
        except LocalEntryNotFoundError:  # its newer versions keep the repository's listing and compare with it
            return False
        return True

    def plan(self, wanted: Download) -> list[RemoteFile]:
        self._reach()
        found = self._snapshot(wanted, dry_run=True)
        return [RemoteFile(file.filename, file.file_size or 0, not file.will_download) for file in found]

    def download(self, wanted: Download) -> Path:
        self._reach()
        for tries_left in reversed(range(TRIES)):
            remove_orphans(self.cache, wanted.repo)
            try:
                return Path(self._snapshot(wanted))
            except Exception as error:
                if not tries_left or not _is_dropped(error):
                    raise
                time.sleep(PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    def _reach(self) -> None:
        """One request without a second try: the client would retry for half a minute where there is no network."""
        if not self._is_reached:
            from huggingface_hub import constants
            from huggingface_hub.utils import get_session

            get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
            self._is_reached = True

    def _snapshot(self, wanted: Download, **how: Any) -> Any:
        from huggingface_hub import snapshot_download

        patterns = list(wanted.patterns)
        return snapshot_download(
            wanted.repo, revision=wanted.revision, allow_patterns=patterns, cache_dir=self.cache, **how
        )
