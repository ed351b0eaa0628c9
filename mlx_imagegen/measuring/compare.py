"""`compare`: several models, the same prompts and seed -> one contact sheet and a table, with each picture's seconds.

In: columns (a model, perhaps with a quant), prompts, parameters. Out: pictures in a folder, found again by a key of all
that made them: what is there is not made twice, so that a run that was cut off goes on. A cell that cannot be made says
why on the sheet and is tried again the next time.
Must not know: families, the command line.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..documents import TEXT_LIMIT_BYTES, parse_toml, read_file
from ..errors import ImagegenError, MissingFileError, RequestError, UnknownModelError
from ..hub.download import Notify, locate
from ..hub.manifest import Model, data_folder, manifests
from ..hub.recognition import find
from ..image import fingerprint, open_picture, read_metadata, write_picture
from ..packing.recipes import read_recipe, recipe_names
from ..paths import expanded
from . import tables
from .environment import environment, measured_on
from .quality import Quality, compared
from .sheet import Tile, contact_sheet, unwritable
from .tables import NONE, gigabytes, short, slug
from .worker import AS_STORED, Failed, Rendered, Worker

AS_EXAMPLE = "examples/prompts.toml shows how one looks"

PROMPT_KEYS = frozenset({"axis", "text"})
SIDE_PIXELS = 256  # of a picture on the sheet
CELLS = "cells"  # the folder of the pictures themselves


@dataclass(frozen=True)
class Column:
    """A model, packed while it is loaded if a quant is given."""

    model: str
    quant: str
    label: str
    precision: str | None = None  # of its denoiser; None: the usual one


@dataclass(frozen=True)
class Line:
    """A prompt, and what it tries."""

    axis: str
    text: str


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet: made now, found from before, or missing with the reason."""

    column: Column
    line: Line
    path: Path | None = None
    reused: bool = False
    reason: str | None = None
    record: dict[str, Any] | None = None  # the picture's own, with its report

    @property
    def seconds(self) -> float | None:
        """Of the picture alone: a model's first one also loads it, packs it and measures kernels."""
        taken = self.record["report"]["seconds"] if self.record else None
        return taken["encode"] + sum(taken["steps"]) + taken["decode"] if taken else None


def compare(
    columns: Sequence[Column], lines: Sequence[Line], parameters: dict[str, Any], folder: Path, tell: Notify
) -> list[list[Cell]]:
    """Columns of cells, as given. Each column is a process of its own that makes only what is not there yet."""
    cells = tables.output_folder(folder / CELLS)
    sheet = [made(column, lines, parameters, cells, tell) for column in columns]
    if not any(cell.record for column in sheet for cell in column):
        raise RequestError(f"no picture could be made. {missing(sheet)[0]}")
    return sheet


def made(column: Column, lines: Sequence[Line], parameters: dict[str, Any], folder: Path, tell: Notify) -> list[Cell]:
    """A column's cells."""
    try:
        identity = identified(column.model, column.quant, parameters, column.precision)
    except (ImagegenError, OSError) as error:
        reason = " ".join(str(error).split())
        tell(f"{column.label}: {reason}")
        return [Cell(column, line, reason=reason) for line in lines]
    cells = [found(column, line, folder / f"{slug(column.label)}-{key(identity, line)}.png") for line in lines]
    wanted = [index for index, cell in enumerate(cells) if cell.record is None]
    if len(wanted) < len(cells):
        tell(f"{column.label}: {len(cells) - len(wanted)} of {len(cells)} are there from before")
    if wanted:
        with Worker(column.model, column.quant, column.precision) as worker:
            for index, cell in _answers(worker, {index: cells[index] for index in wanted}, parameters):
                cells[index] = cell
                tell(f"{column.label}, {cell.line.axis}: {cell.reason or f'{short(cell.seconds)} s'}")
    return cells


def _answers(worker: Worker, wanted: dict[int, Cell], parameters: dict[str, Any]) -> Iterator[tuple[int, Cell]]:
    """The wanted cells as the worker answers them; it is not asked again for what would fail in the same way."""
    lost: Failed | None = None
    for index, cell in wanted.items():
        assert cell.path
        answer = lost or worker.render(cell.line.text, cell.path, parameters)
        if isinstance(answer, Rendered):
            yield index, replace(cell, record=answer.record | {"report": answer.report})
            continue
        lost = answer if answer.scope != "picture" else None
        yield index, replace(cell, path=None, reason=answer.reason)


def found(column: Column, line: Line, path: Path) -> Cell:
    """The cell as it was left by an earlier run; without a record if it has to be made."""
    try:
        return Cell(column, line, path, reused=True, record=read_metadata(path))
    except (MissingFileError, RequestError):
        return Cell(column, line, path)


def identified(name: str, quant: str, parameters: dict[str, Any], precision: str | None = None) -> dict[str, Any]:
    """All that decides about a column's pictures and seconds, apart from the prompt."""
    model = _model(name)
    recipe = None if quant == AS_STORED else read_recipe(quant, model.manifest.family).digest
    pictures = [fingerprint(open_picture(path, alpha=True)) for path in parameters.get("references", ())]
    return {
        "model": model.requested_as,  # two folders' files can have the same stamp
        "manifest": repr(model.manifest),
        "files": _stamp(model) if model.folder else model.manifest.revision,
        "recipe": recipe,
        "parameters": parameters | {"references": pictures} if pictures else parameters,
        "versions": [__version__, importlib.metadata.version("mlx")],
        **({"precision": precision} if precision else {}),
    }


def _model(name: str) -> Model:
    try:
        return find(name)
    except UnknownModelError:  # of a repository that no manifest names the files have to be here to say what it is
        model, folder = locate(name)
        return replace(model, folder=folder)


def key(identity: dict[str, Any], line: Line) -> str:
    text = json.dumps(identity | {"prompt": line.text}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(model: Model) -> list[str]:
    """Changes when a file of the model does, or of a bundled LoRA that makes the model out of its base."""
    assert model.folder
    files = sorted(path for path in model.folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    own = model.manifest.extras.get("lora", {})
    files += [data_folder("weights") / own["file"]] if own and "repo" not in own else []
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def read_columns(texts: Sequence[str], precision: str | None = None) -> list[Column]:
    """`flux-dev@q6` -> a model and a quant, each pair once; with a short label where that is nobody else's."""
    pairs = list(dict.fromkeys(map(_pair, texts)))
    labels = [_label(*pair) for pair in pairs]
    return [
        Column(*pair, label if labels.count(label) == 1 else " ".join(pair).removesuffix(f" {AS_STORED}"), precision)
        for pair, label in zip(pairs, labels, strict=True)
    ]


def _pair(text: str) -> tuple[str, str]:
    model, at, quant = text.rpartition("@")
    # Of a model that is known by name anything behind the @ is meant as a quant, also one that does not exist.
    known = quant in (AS_STORED, *recipe_names()) or quant.endswith(".toml") or model in manifests()
    return (model, quant) if at and model and known else (text, AS_STORED)


def _label(model: str, quant: str) -> str:
    name = (Path(model).name if "/" in model else "") or model
    return name if quant == AS_STORED else f"{name} {Path(quant).stem}"


def read_lines(path: Path) -> list[Line]:
    """Prompts from a .toml file ([[prompt]] tables with axis and text) or a text file, one a line; each text once."""
    path, is_toml = expanded(path), path.suffix.lower() == ".toml"
    try:
        text = read_file(path, TEXT_LIMIT_BYTES, RequestError, AS_EXAMPLE).decode("utf-8-sig")  # some editors' mark
    except MissingFileError as error:
        raise MissingFileError(f"--prompts: {path} is not there; {AS_EXAMPLE}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--prompts: {path} cannot be read ({error}).") from error
    data = (
        parse_toml(text, f"--prompts: {path} cannot be read:", RequestError, AS_EXAMPLE).get("prompt")
        if is_toml
        else None
    )
    if not is_toml:
        said = [line.strip() for line in text.split("\n") if line.strip()]
        if any(line.startswith("{") for line in said):
            raise RequestError(
                f"--prompts: {path} holds jobs as --prompt-file takes them; here a line is a prompt alone, and all "
                "models draw it with the same parameters, given as flags."
            )
        data = [{"axis": f"{number}", "text": line} for number, line in enumerate(said, 1)]
    if not isinstance(data, list) or not data:
        raise RequestError(
            f"--prompts: {path} holds no prompts; give [[prompt]] tables with axis and text, or a line each."
        )
    lines: dict[str, Line] = {}
    for number, entry in enumerate(data, 1):
        line = _line(entry, f"--prompts: {path}, prompt {number}")
        lines.setdefault(line.text, line)
    return list(lines.values())


def _line(entry: Any, where: str) -> Line:
    texts = entry.values() if isinstance(entry, dict) and set(entry) == PROMPT_KEYS else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise RequestError(f"{where}: a prompt has an axis and a text, and nothing else.")
    return Line(entry["axis"], entry["text"].strip())


WITHOUT = "Seconds: encoding, steps and decoding; loading and preparing, which a model's first picture pays for, apart"
HEADER = (
    "model", "prompt", "size", "steps", "seconds", "load", "prepare", "encode", "a step", "decode", "MLX peak GB",
    "PSNR dB", "GMSD",
)  # fmt: skip
DISTANCE = "PSNR and GMSD of packed weights' pictures: against the same model as stored, where that is a column"


def rows(sheet: Sequence[Sequence[Cell]]) -> list[list[str]]:
    return [_row(cell, distance(cell, sheet)) for cells in sheet for cell in cells]


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
        NONE if quality is None else short(quality.psnr_db) if quality.psnr_db is not None else "∞",
        NONE if quality is None else f"{quality.gmsd:.4f}",
    ]  # fmt: skip


def missing(sheet: Sequence[Sequence[Cell]]) -> list[str]:
    """Why cells are missing, each reason of a column once."""
    every = [cell for cells in sheet for cell in cells]
    return list(dict.fromkeys(f"{cell.column.label}: {cell.reason}" for cell in every if cell.reason))


def noted(sheet: Sequence[Sequence[Cell]]) -> list[str]:
    """What the pictures' reports tell, each once with the columns that it is true of."""
    columns: dict[str, dict[str, None]] = {}
    for cell in [cell for cells in sheet for cell in cells]:
        for note in cell.record["report"]["notes"] if cell.record else []:
            columns.setdefault(note, {})[cell.column.label] = None
    return [f"{', '.join(labels)}: {note}" for note, labels in columns.items()]


def in_terminal(sheet: Sequence[Sequence[Cell]]) -> str:
    said = [f"note: {line}" for line in noted(sheet)] + [f"missing: {line}" for line in missing(sheet)]
    return "\n".join([tables.aligned(HEADER, rows(sheet)), *said])


def write(sheet: Sequence[Sequence[Cell]], parameters: dict[str, Any], folder: Path, tell: Notify) -> Path:
    """sheet.png, compare.md, compare.json and compare.csv; gives the sheet's path."""
    where = environment()
    said = [f"- note: {line}" for line in noted(sheet)] + [f"- missing: {line}" for line in missing(sheet)]
    text = [tables.markdown(HEADER, rows(sheet)), "", *said, "", f"{WITHOUT}. {DISTANCE}. {measured_on(where)}", ""]
    tables.write_text(folder / "compare.md", "\n".join(text))
    data = {"parameters": parameters, "where": where, "cells": _data(sheet, folder)}
    tables.write_json(folder / "compare.json", data)
    tables.write_csv(folder / "compare.csv", [_flat(cell) for cells in sheet for cell in cells])
    path = folder / "sheet.png"
    write_picture(drawn(sheet, parameters, where), path)
    for prompt in unwritable(cell.line.text for cell in sheet[0]):
        tell(f"note: no font of this system has the letters of '{prompt}'; the sheet shows the rest of it.")
    return path


def drawn(sheet: Sequence[Sequence[Cell]], parameters: dict[str, Any], where: dict[str, str | None]) -> Image.Image:
    tiles = [[_tile(cell) for cell in row] for row in zip(*sheet, strict=True)]
    pictures = ", ".join(Path(path).name for path in parameters.get("references", ()))
    shown = parameters | {"references": pictures} if pictures else parameters
    given = ", ".join(f"{name} {value}" for name, value in shown.items())
    footer = f"{given}. Under each picture: seconds of encoding, steps and decoding. "
    footer += f"{where['device']}, mlx {where['mlx']}, {where['date']}."
    lines = [(cell.line.axis, cell.line.text) for cell in sheet[0]]
    return contact_sheet([cells[0].column.label for cells in sheet], lines, tiles, SIDE_PIXELS, footer)


def _tile(cell: Cell) -> Tile:
    if cell.path is None or cell.seconds is None:
        return Tile(cell.reason or "not made")
    return Tile(f"{short(cell.seconds)} s", open_picture(cell.path))


def _data(sheet: Sequence[Sequence[Cell]], folder: Path) -> list[dict[str, Any]]:
    return [
        {
            **asdict(cell.column), **asdict(cell.line), "reason": cell.reason, "reused": cell.reused,
            "seconds": cell.seconds,
            "picture": str(cell.path.relative_to(folder)) if cell.path else None, "record": cell.record,
        }
        for cells in sheet
        for cell in cells
    ]  # fmt: skip


def _flat(cell: Cell) -> dict[str, Any]:
    report = cell.record["report"] if cell.record else None
    flat: dict[str, Any] = {**asdict(cell.column), **asdict(cell.line), "seconds": cell.seconds, "reason": cell.reason}
    if report:
        taken = report["seconds"]
        stages = {f"{name}_seconds": value for name, value in taken.items() if name != "steps"}
        flat |= stages | {"steps": len(taken["steps"]), "steps_seconds": sum(taken["steps"])}
        peaks = report["peak_bytes"]
        flat |= {"mlx_peak_bytes": max(peaks["mlx"].values()), "process_peak_bytes": peaks["process"]}
    return flat
