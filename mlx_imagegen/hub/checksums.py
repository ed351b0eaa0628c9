"""Whether a downloaded file is the one that was published: the cache calls it by the SHA-256 of what it should hold.

In: a snapshot's folder. Out: nothing, or a DownloadError, after the damaged file is removed so that the next run gets
it again. Each file is read through once and remembered by its place, size and time. The hub's client compares sizes
alone: a bit that was flipped on the way, or half a file of zeros after a power cut, would draw pictures.
Must not know: the network, what is in the files.
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..atomic import atomic_replace
from ..cache import cache_folder
from ..documents import open_file, read_json, stamp_of
from ..errors import DownloadError, ImagegenError

SHA256 = re.compile(r"[0-9a-f]{64}")  # other blobs are small files, named by Git's hash
TOLD_BYTES = 10**9  # a second or two
KNOWN = "checked_downloads.json"


def check_files(folder: Path, patterns: Sequence[str], tell: Callable[[str], None]) -> Path:
    """The folder, after every file that matches was compared with its name."""
    known = _known()
    fresh = [(*pair, _stamp(pair[1])) for pair in _named_blobs(folder, patterns)]
    fresh = [each for each in fresh if known.get(str(each[1])) != list(each[2])]
    nbytes = sum(blob.stat().st_size for _, blob, _ in fresh)
    if nbytes > TOLD_BYTES:
        tell(f"Checking {nbytes / 1e9:.1f} GB of downloads, once.")
    for link, blob, stamp in fresh:
        _check(link, blob)
        _remember({str(blob): list(stamp)})
    return folder


def _named_blobs(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    for link in sorted(folder.rglob("*")):
        name = link.relative_to(folder).as_posix()
        if link.is_symlink() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            blob = link.resolve()
            if SHA256.fullmatch(blob.name) and blob.is_file():
                yield link, blob


def _check(link: Path, blob: Path) -> None:
    with open_file(blob, DownloadError) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == blob.name:
        return
    blob.unlink(missing_ok=True)
    link.unlink(missing_ok=True)
    raise DownloadError(
        f"{link} was damaged on its way or on the disk: its SHA-256 begins with {found[:12]}, and should with "
        f"{blob.name[:12]}. It was removed; run it again to download it."
    )


def _stamp(blob: Path) -> tuple[int, ...]:
    with open_file(blob, DownloadError) as file:
        return stamp_of(file)


def _known() -> dict[str, object]:
    try:
        return read_json(cache_folder() / KNOWN)
    except (OSError, ImagegenError):
        return {}


def _remember(fresh: dict[str, list[int]]) -> None:
    """Those that another process added stay; where nothing can be written, files are checked again."""
    path = cache_folder() / KNOWN
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as temporary:
            temporary.write_text(json.dumps(_known() | fresh, indent=1), encoding="utf-8")
    except OSError:
        return
