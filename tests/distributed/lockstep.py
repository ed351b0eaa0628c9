"""Pictures that ranks draw together, next to those of one process: rows for the tests and for every_family.py."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.distributed.ranks import SECONDS, finish, start

PROGRAM = str(Path(__file__).parent / "lockstep_program.py")
Entry = dict[str, Any]
Row = dict[str, Any]


def entry(
    model: Path | str,
    parts: list[int] | None = None,
    quant: str | None = None,
    mixed_kernels: bool = False,
    **asked: Any,
) -> Entry:
    """`parts`: of the layers, each rank's; equal ones if not given. `mixed_kernels`: packed layers
    multiply by other ones on each rank."""
    small = {"seed": 1, "steps": 2} | ({"width": 64, "height": 64} if isinstance(model, Path) else {})
    opened = {} if quant is None else {"quant": quant}
    return {
        "model": str(model),
        "opened": opened,
        "parts": parts,
        "mixed_kernels": mixed_kernels,
        "asked": small | asked,
    }


def compared(mode: str, ranks: int, entries: Iterable[Entry], folder: Path, seconds: float = SECONDS) -> list[Row]:
    jobs = folder / f"{mode}-{ranks}.json"
    jobs.write_text(json.dumps(list(entries)))
    outputs = finish(start(ranks, [PROGRAM, mode, str(jobs)], folder), seconds)
    assert all(code == 0 for code, _, _ in outputs), "\n".join(error for _, _, error in outputs)
    return [json.loads(line) for line in outputs[0][1].splitlines()]


def check(row: Row, steps: int = 2) -> None:
    """One level, of a picture that is no single colour, and all ranks took part in every step."""
    assert "refused" not in row, row
    assert row["levels"] <= 1 and row["spread"] > 1, row
    assert all(len(rank["step_seconds"]) == steps for rank in row["ranks"]), row
