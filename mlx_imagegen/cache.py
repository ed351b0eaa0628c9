"""What was measured or computed once, kept in the user's cache folder: bounded, never needed, never believed unchecked.

In: a key that says everything the arrays were made from. Out: the arrays, or None if they are not there whole. A
checkpoint's own folder is never written to: it may be the hub's, read-only, or the user's only copy, and one place for
all models can be bounded and removed as one. What belongs to a checkpoint for good is written by `quantize --fold`.
Must not know: what the arrays mean.
"""

import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .atomic import atomic_replace
from .documents import json_text, read_json
from .errors import ImagegenError
from .loading.checkpoint import DTYPES, as_mlx, read_header
from .paths import visible

# All kept arrays together: nine schedules of 50 steps of Qwen-Image in bfloat16, or 56 of 8 steps.
LIMIT_BYTES = 2 * 10**9
CHECKSUM = "crc32"


def cache_folder() -> Path:
    usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / usual)
    return root / "mlx-imagegen"


def recall(folder: Path, key: str) -> dict[str, mx.array] | None:
    """What was kept under `key`, checked by its sum; None if it is not there, damaged or cut."""
    path = _place(folder, key)
    try:
        tensors, metadata = read_header(path)
        raw = {name: tensors[name].bytes() for name in sorted(tensors)}
        heads = [f"{name} {DTYPES[tensors[name].dtype][1]}" for name in raw]
        if metadata.get(CHECKSUM) != _checksum(heads, list(raw.values())):
            return None
        os.utime(path)  # the latest used is the last to be removed
    except (OSError, ImagegenError):
        return None
    return {name: as_mlx(array, tensors[name].dtype) for name, array in raw.items()}


def keep(folder: Path, key: str, arrays: Mapping[str, mx.array]) -> str | None:
    """Writes `arrays` under `key`, whole or not at all, and makes room; why not, if it could not be done."""
    need = sum(array.nbytes for array in arrays.values())
    if need > LIMIT_BYTES:
        return f"too large to keep: {need / 1e9:.1f} GB"
    names = sorted(arrays)
    checksum = _checksum([f"{name} {arrays[name].dtype}" for name in names], [_carried(arrays[name]) for name in names])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, need)
        with atomic_replace(_place(folder, key)) as temporary:
            mx.save_safetensors(str(temporary), dict(arrays), {CHECKSUM: checksum})
    except (OSError, RuntimeError) as error:  # MLX raises its own for a disk that is full
        return f"{folder} cannot be written ({error})"
    return None


def recall_entries(path: Path) -> dict[str, Any]:
    """A JSON file of entries that were measured or found once; none if it is not there or damaged."""
    try:
        return read_json(path)
    except (OSError, ImagegenError):
        return {}


def keep_entries(path: Path, entries: dict[str, Any]) -> bool:
    """Writes such a file, all or nothing; False where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as temporary:
            temporary.write_text(json_text(entries), encoding="utf-8")
    except OSError:
        return False
    return True


def _place(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _make_room(folder: Path, need: int) -> None:
    """Removes what was used longest ago until `need` bytes more are within the limit; a killed run's leavings too."""
    kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in visible(folder, "*.safetensors"))
    total = need + sum(size for _, size, _ in kept)
    for _, size, path in kept:
        if total <= LIMIT_BYTES:
            return
        path.unlink(missing_ok=True)  # another process may have removed it
        total -= size


def _carried(array: mx.array) -> np.ndarray:
    """numpy has no bfloat16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _checksum(heads: Sequence[str], arrays: Sequence[np.ndarray]) -> str:
    """Of the header too: other names, types or shapes would be other arrays."""
    total = 0
    for head, array in zip(heads, arrays, strict=True):
        total = zlib.crc32(f"{head} {array.shape}".encode(errors="surrogatepass"), total)
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).data.cast("B"), total)
    return f"{total:08x}"
