"""A bench's rows as others can use them: one file for benchmarks/macs/, which `plan` estimates from.

In: rows of `bench` and where they were measured. Out: the file. Must not know: how it is read (planning/measurements.py
has the row).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import json_text
from ..packing.recipes import AS_STORED
from ..planning.chips import chip_of
from ..planning.measurements import Measurement
from .bench import Row
from .tables import write_text

# What others need to know of the machine; not its name, its folders or its user.
MACHINE = ("device", "system", "memory", "mlx", "mlx-imagegen", "matrix units", "TF32", "commit", "date")


def shared(rows: Sequence[Row], where: Mapping[str, str | None]) -> dict[str, Any]:
    device = where["device"] or ""
    chip = chip_of(device)
    program = f"mlx-imagegen {where['mlx-imagegen']}"
    made = [
        Measurement(
            (chip,) if chip else (), row.manifest, None if row.quant == AS_STORED else row.quant, *row.size,
            row.step_seconds.median, program, device, peak_bytes=row.peak_bytes,
        )
        for row in rows
        # A step that is predicted says nothing of a chip, and another precision's is not what the plan is about.
        if row.step_seconds and row.size and row.cache is None and row.precision is None
    ]  # fmt: skip
    return {"machine": {name: where.get(name) for name in MACHINE}, "rows": [each.as_row() for each in made]}


def write_shared(rows: Sequence[Row], where: Mapping[str, str | None], path: Path) -> None:
    write_text(path, json_text(shared(rows, where)))
