"""Where the Hugging Face cache keeps a repository's files. Must not know: what is in them, the network."""

import fcntl
import re
from contextlib import suppress
from pathlib import Path

from ..paths import expanded

# What the hub's client writes a file to until it is whole; a killed one leaves it, and no other run goes on with it.
UNFINISHED = re.compile(r"(?P<blob>.+)\.[0-9a-f]{8}\.incomplete")


def cache_folder() -> Path:
    from huggingface_hub import constants  # slow, and few calls need it

    return expanded(constants.HF_HUB_CACHE)


def storage_folder(cache: Path, repo: str) -> Path:
    """Where everything of `repo` is, all its revisions."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached(cache: Path, repo: str, revision: str) -> Path | None:
    """The snapshot of `repo` in the cache, whole or not."""
    storage = storage_folder(cache, repo)
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    return folder if folder.is_dir() else None


def remove_orphans(cache: Path, repo: str) -> None:
    """Removes the halves of files that killed downloads left. A file that a client holds the lock of is being
    downloaded."""
    storage = storage_folder(cache, repo)
    for path in storage.glob("blobs/*.incomplete"):
        named = UNFINISHED.fullmatch(path.name)
        lock = cache / ".locks" / storage.name / f"{named['blob']}.lock" if named else None
        with suppress(OSError):
            if lock and not _is_locked(lock):
                path.unlink()


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
