"""Whether a downloaded file is the one that was published: the cache calls it by the hash of what it should hold.

In: a snapshot's folder. Out: the damaged files, which are removed so that the next download gets them again. Each file
is read through once and remembered by its place, size and time. The hub's client compares sizes alone: a bit that was
flipped on the way, or half a file of zeros after a power cut, would draw pictures.
Must not know: the network, what is in the files.
"""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..cache import cache_folder, keep_entries, recall_entries
from ..documents import open_file, stamp_of
from ..errors import DownloadError

SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_HASH = re.compile(r"[0-9a-f]{40}")  # of small files
CHUNK_BYTES = 2**20
TOLD_BYTES = 10**9  # a second or two
KNOWN = "checked_downloads.json"


def remove_damaged(folder: Path, patterns: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Compares every file that matches with its name; the damaged ones' names, after they are removed."""
    path = cache_folder() / KNOWN
    known = recall_entries(path)
    fresh = [
        (link, blob, stamp) for link, blob, stamp in _named_blobs(folder, patterns) if known.get(str(blob)) != stamp
    ]
    nbytes = sum(blob.stat().st_size for _, blob, _ in fresh)
    if nbytes > TOLD_BYTES:
        tell(f"Checking {nbytes / 1e9:.1f} GB of downloads, once.")
    damaged, sound = [], {}
    for link, blob, stamp in fresh:
        if hash_of(blob) == blob.name:
            sound[str(blob)] = stamp
            continue
        link.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        damaged.append(link.relative_to(folder).as_posix())
    if sound:  # where nothing can be written, files are checked again
        keep_entries(path, recall_entries(path) | sound)
    return damaged


def hash_of(blob: Path) -> str:
    """As the hub names the file: of large ones SHA-256, of small ones Git's."""
    with open_file(blob, DownloadError) as file:
        if SHA256.fullmatch(blob.name):
            return hashlib.file_digest(file, "sha256").hexdigest()
        git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            git.update(chunk)
        return git.hexdigest()


def _named_blobs(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[Path, Path, list[int]]]:
    """Each link whose file is named by its hash, the file, and its stamp."""
    for link in sorted(folder.rglob("*")):
        name = link.relative_to(folder).as_posix()
        if link.is_symlink() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            blob = link.resolve()
            if (SHA256.fullmatch(blob.name) or GIT_HASH.fullmatch(blob.name)) and blob.is_file():
                with open_file(blob, DownloadError) as file:
                    yield link, blob, list(stamp_of(file))
