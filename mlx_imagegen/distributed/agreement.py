"""Checks that all ranks have opened the same model, files, LoRAs, packing and pictures.

In: each rank's open pipeline and jobs. Out: nothing, or an error on all ranks that names the rank and what differs.
Weights are compared by size, header and a few samples: reading all of them would take as long as loading them.
Must not know: how pictures are shared out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DistributedError
from ..loading.parts import INDEX
from ..packing.recipes import canonical_name
from ..pipeline import Pipeline
from ..precision import dtype_name
from ..request.job import Job
from .group import Group

SAMPLES, SAMPLE_BYTES = 16, 4096
CONFIGS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
WORDS = {
    "manifest": "the model {value}",
    "quant": "the quant {value}",
    "dtype": "a denoiser in {value} (see --precision)",
    "held": "weights held as {value}",
    "jobs": "other pictures to draw",
}


def check_same(group: Group, pipeline: Pipeline, jobs: Sequence[Job]) -> None:
    """Called on all ranks; returns on all of them or on none."""
    identities = group.gather({"kind": "identity", **identity(pipeline, jobs)})
    for rank, other in enumerate(identities[1:], 1):
        if different := difference(identities[0], other):
            raise DistributedError(f"{group.name(rank)} has {different}; give all hosts the same files and options.")
    group.share({"kind": "same"} if group.rank == 0 else None)


def identity(pipeline: Pipeline, jobs: Sequence[Job]) -> dict[str, Any]:
    manifest = pipeline.model.manifest
    records = json.dumps([job.record(manifest.guidance) for job in jobs], sort_keys=True, default=str)
    return {
        "manifest": manifest.name,
        "quant": canonical_name(pipeline.quant) if pipeline.quant else "none",
        "dtype": dtype_name(pipeline.family.transformer.dtype),
        "held": {name: str(component.held_as) for name, component in pipeline.family.components.items()},
        "jobs": hashlib.sha256(records.encode()).hexdigest(),
        "files": {name: digest(path) for name, path in _files(pipeline)},
    }


def difference(first: Mapping[str, Any], other: Mapping[str, Any], fields: Mapping[str, str] = WORDS) -> str | None:
    """What another rank has in place of rank 0's. `fields`: those to compare, in words."""
    if first["manifest"] == other["manifest"]:
        for name in sorted({*first["files"], *other["files"]}):
            if name not in other["files"]:
                return f"no {name}, which rank 0 has"
            if first["files"].get(name) != other["files"][name]:
                return f"another {name} than rank 0"
    for field, words in fields.items():
        if first[field] != other[field]:
            here, there = (words.format(value=each[field]) for each in (other, first))
            return here if here == there else f"{here}, and rank 0 {there}"
    return None


def _files(pipeline: Pipeline) -> Iterator[tuple[str, Path]]:
    """Configs, weights and LoRAs, by names that do not depend on their folder."""
    folder = pipeline.folder
    configs = [path for pattern in CONFIGS for path in folder.glob(pattern)] if folder.is_dir() else []
    paths = [("", path) for path in configs if path.name != INDEX]  # which has other files' places in it
    weights = pipeline.family.weights.items()
    paths += [(component, path) for component, each in weights for path in each.checkpoint.paths]
    for component, path in paths:
        inside = path.is_relative_to(folder)
        yield (path.relative_to(folder) if inside else Path(component, path.name)).as_posix(), path
    for match in pipeline.merge.matches:
        yield match.lora.file.path.name, match.lora.file.path


def digest(path: Path) -> str:
    """Of the size and of evenly spaced samples; the first sample contains the beginning of the header."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
