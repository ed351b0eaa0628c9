"""What the converter notes of a folder's making, and the command that makes such a folder again with a change.

Must not know: what is in the folder.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..documents import read_json
from ..loading.config import NUMBER, TEXT, Range, read_part
from .manifest import manifests

RECORD = "mlx_imagegen.json"  # written by our converter: where a folder came from
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FoldedSchedule:
    steps: Annotated[int, Range(1, 1000)]
    size: Annotated[tuple[int, int], Range(1, 2**16)] | None = None


@dataclass(frozen=True)
class MergedLora:
    file: Annotated[str, TEXT]
    scale: Annotated[float, Range(-1e6, 1e6)]


@dataclass(frozen=True)
class FolderRecord:
    """The fields that are used later, with their kinds."""

    manifest: str | None = None
    source: Annotated[str, TEXT] | None = None
    revision: str | None = None
    recipe: Annotated[str, TEXT] | None = None
    folded: FoldedSchedule | None = None
    lora: Annotated[tuple[MergedLora, ...], NUMBER] = ()


def record_of(folder: Path) -> dict[str, Any]:
    """What our converter noted of a folder's making; empty for a folder that it did not make."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    record = read_json(path, again="make the folder again with mlx-imagegen quantize")
    read_part(FolderRecord, record, path)
    return record


def revision_of(folder: Path) -> str | None:
    """The commit a folder's files are of, where it says so: the hub's cache names snapshots by it, our converter notes
    it."""
    name = folder.resolve().name
    return name if COMMIT.fullmatch(name) else record_of(folder).get("revision")


def remake(
    record: Mapping[str, Any],
    loras: Sequence[Mapping[str, Any]] = (),
    fold: int | None = None,
    fold_size: tuple[int, int] | None = None,
    lora_partial: bool = False,
) -> str:
    """`loras`: to be merged on top of the former, as `Lora.described` has them. `fold`: in place of the former."""
    model, before = _model(record)
    folded = record.get("folded") or {}
    steps, size = (fold, fold_size) if fold else (folded.get("steps"), folded.get("size"))
    words = ["mlx-imagegen", "quantize", "--model", model, "--quant", str(record.get("recipe", "q6"))]
    words += ["--fold", str(steps)] if steps else []
    words += ["--fold-size", f"{size[0]}x{size[1]}"] if size else []
    words += ["--calibrate", "FILE"] if record.get("calibrated_with") else []  # the record has what stood in it
    words += [word for lora in (*before, *loras) for word in ("--lora", f"{lora['file']}:{lora['scale']:g}")]
    words += ["--lora-partial"] if lora_partial or record.get("lora_partial") else []
    return f"{shlex.join([*words, '-o'])} FOLDER"


def _model(record: Mapping[str, Any]) -> tuple[str, list[Mapping[str, Any]]]:
    """What to call the source, and the LoRAs to name with it. A manifest's name brings its own LoRA, which comes
    first in the record, and its own schedule."""
    source, loras = record.get("source"), list(record.get("lora", []))
    manifest = manifests().get(str(record.get("manifest")))
    if source and manifest and source == str(manifest.bundled.resolve() if manifest.bundled else manifest.repo):
        return manifest.name, loras[1:] if "lora" in manifest.extras else loras
    return str(source or "MODEL"), loras
