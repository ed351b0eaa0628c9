"""What `compare` shows of its cells: a contact sheet, and tables for a terminal and for files.

In: columns of cells. Out: text, sheet.png, compare.md, compare.json and compare.csv. Must not know: how cells are made.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..documents import json_text
from ..hub.download import Notify
from ..image import open_picture, write_picture
from ..packing.recipes import AS_STORED
from . import tables
from .compare import Cell, missing
from .environment import environment, measured_on
from .quality import Quality, compared
from .sheet import Tile, contact_sheet, unwritable
from .tables import NONE, decibels, gigabytes, short

SIDE_PIXELS = 256  # of a picture on the sheet

WITHOUT = "Seconds: encoding, steps and decoding; loading and preparing, which a model's first picture pays for, apart"
HEADER = (
    "model", "prompt", "size", "steps", "seconds", "load", "prepare", "encode", "a step", "decode", "MLX peak GB",
    "PSNR dB", "GMSD",
)  # fmt: skip
DRAWN_ON = "drawn on"  # one more column, where machines are several
UNLIKE = f"That is the machine that wrote this table; under '{DRAWN_ON}' are those that a cell's seconds are of."
DISTANCE = "PSNR and GMSD of packed weights' pictures: against the same model as stored, where that is a column"


def header(sheet: Sequence[Sequence[Cell]]) -> tuple[str, ...]:
    return (*HEADER, DRAWN_ON) if are_several(sheet) else HEADER


def rows(sheet: Sequence[Sequence[Cell]]) -> list[list[str]]:
    several = are_several(sheet)
    return [
        [*_row(cell, distance(cell, sheet)), *([cell.drawn_on or NONE] if several else [])]
        for cells in sheet
        for cell in cells
    ]


def are_several(sheet: Sequence[Sequence[Cell]]) -> bool:
    """Whether several machines drew the cells, whose seconds then do not compare."""
    return len({cell.drawn_on for cells in sheet for cell in cells if cell.record}) > 1


def distance(cell: Cell, sheet: Sequence[Sequence[Cell]]) -> Quality | None:
    """From the picture that the same model draws with its weights as stored."""
    if cell.path is None or cell.column.quant == AS_STORED:
        return None
    others = [other for cells in sheet for other in cells if other.line == cell.line and other.path]
    stored = [o for o in others if (o.column.model, o.column.quant) == (cell.column.model, AS_STORED)]
    if not stored or stored[0].path is None:
        return None
    return compared(open_picture(cell.path), open_picture(stored[0].path))


def _row(cell: Cell, quality: Quality | None) -> list[str]:
    if cell.record is None:
        return [cell.column.label, cell.line.axis, *[NONE] * (len(HEADER) - 2)]
    report = cell.record["report"]
    taken = report["seconds"]
    steps = taken["steps"]
    return [
        cell.column.label, cell.line.axis, f"{cell.record['width']}x{cell.record['height']}", str(len(steps)),
        short(cell.seconds), short(taken["load"]), short(taken["prepare"]), short(taken["encode"]),
        short(sum(steps) / len(steps)), short(taken["decode"]), gigabytes(max(report["peak_bytes"]["mlx"].values())),
        *([NONE, NONE] if quality is None else [decibels(quality.psnr_db), f"{quality.gmsd:.4f}"]),
    ]  # fmt: skip


def noted(sheet: Sequence[Sequence[Cell]]) -> list[str]:
    """What the pictures' reports tell, each once with the columns that it is true of."""
    columns: dict[str, dict[str, None]] = {}
    for cell in [cell for cells in sheet for cell in cells]:
        for note in cell.record["report"]["notes"] if cell.record else []:
            columns.setdefault(note, {})[cell.column.label] = None
    return [f"{', '.join(labels)}: {note}" for note, labels in columns.items()]


def in_terminal(sheet: Sequence[Sequence[Cell]]) -> str:
    return "\n".join([tables.aligned(header(sheet), rows(sheet)), *_said(sheet)])


def _said(sheet: Sequence[Sequence[Cell]]) -> list[str]:
    return [f"note: {line}" for line in noted(sheet)] + [f"missing: {line}" for line in missing(sheet)]


def write(sheet: Sequence[Sequence[Cell]], parameters: dict[str, Any], folder: Path, tell: Notify) -> Path:
    """sheet.png, compare.md, compare.json and compare.csv; gives the sheet's path."""
    where, precision = environment(), sheet[0][0].column.precision
    parameters = parameters | ({"precision": precision} if precision else {})
    unlike = f" {UNLIKE}" if are_several(sheet) else ""
    below = f"{WITHOUT}. {DISTANCE}. {measured_on(where)}{unlike}"
    said = [f"- {line}" for line in _said(sheet)]
    text = [tables.markdown(header(sheet), rows(sheet)), "", *said, "", below, ""]
    tables.write_text(folder / "compare.md", "\n".join(text))
    cells = [_data(cell, folder) for cells in sheet for cell in cells]
    data = {"parameters": parameters, "where": where, "cells": cells}
    tables.write_text(folder / "compare.json", json_text(data))
    tables.write_csv(folder / "compare.csv", [_flat(cell) for cells in sheet for cell in cells])
    path = folder / "sheet.png"
    write_picture(drawn(sheet, parameters, where), path)
    for prompt in unwritable(cell.line.text for cell in sheet[0]):
        tell(f"note: no font of this system has the letters of '{prompt}'; the sheet shows the rest of it.")
    return path


def drawn(sheet: Sequence[Sequence[Cell]], parameters: dict[str, Any], where: dict[str, str | None]) -> Image.Image:
    several = are_several(sheet)
    tiles = [[_tile(cell, several) for cell in row] for row in zip(*sheet, strict=True)]
    pictures = ", ".join(Path(path).name for path in parameters.get("references", ()))
    shown = parameters | {"references": pictures} if pictures else parameters
    given = ", ".join(f"{name} {value}" for name, value in shown.items())
    footer = f"{given}. Under each picture: seconds of encoding, steps and decoding. "
    if several:
        footer += "Cells name the machine that they were measured on. "
    footer += f"{where['device']}, mlx {where['mlx']}, {where['date']}."
    lines = [(cell.line.axis, cell.line.text) for cell in sheet[0]]
    return contact_sheet([cells[0].column.label for cells in sheet], lines, tiles, SIDE_PIXELS, footer)


def _tile(cell: Cell, several: bool) -> Tile:
    if cell.path is None or cell.seconds is None:
        return Tile(cell.reason or "not made")
    machine = f", {cell.drawn_on}" if several else ""
    return Tile(f"{short(cell.seconds)} s{machine}", open_picture(cell.path))


def _common(cell: Cell) -> dict[str, Any]:
    own = {"seconds": cell.seconds, "reason": cell.reason, "drawn_on": cell.drawn_on}
    return asdict(cell.column) | asdict(cell.line) | own


def _data(cell: Cell, folder: Path) -> dict[str, Any]:
    picture = str(cell.path.relative_to(folder)) if cell.path else None
    return _common(cell) | {"reused": cell.reused, "picture": picture, "record": cell.record}


def _flat(cell: Cell) -> dict[str, Any]:
    """A line of the CSV file: plain numbers, one a column."""
    if not cell.record:
        return _common(cell)
    taken, peaks = cell.record["report"]["seconds"], cell.record["report"]["peak_bytes"]
    stages = {f"{name}_seconds": value for name, value in taken.items() if name != "steps"}
    steps = {"steps": len(taken["steps"]), "steps_seconds": sum(taken["steps"])}
    most = {"mlx_peak_bytes": max(peaks["mlx"].values()), "process_peak_bytes": peaks["process"]}
    return _common(cell) | stages | steps | most
