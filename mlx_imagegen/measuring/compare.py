"""`compare`: several models, the same prompts and seed -> the cells of a contact sheet, with each picture's seconds.

In: columns (a model, perhaps with a quant), prompts, parameters. Out: pictures in a folder, found again by a key of all
that made them: what is there is not made twice, so that a run that was cut off goes on. A cell that cannot be made has
the reason and is tried again the next time.
Must not know: families, the command line, tables.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..documents import TEXT_LIMIT_BYTES, parse_toml, read_file
from ..errors import ImagegenError, MissingFileError, RequestError, UnknownModelError
from ..escaping import one_line
from ..hub.component_folders import sources
from ..hub.download import Notify, locate
from ..hub.manifest import Model, data_folder, manifests
from ..hub.recognition import find
from ..image import fingerprint, open_picture, read_metadata
from ..packing.recipes import AS_STORED, read_recipe, recipe_names
from ..paths import expanded
from .tables import output_folder, short, slug
from .worker import Failed, Rendered, Worker

AS_EXAMPLE = "examples/prompts.toml shows how one looks"
RANK = "rank"  # among a report's choices: which of several drew the picture
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
    def is_wanted(self) -> bool:
        return self.record is None and self.reason is None

    @property
    def seconds(self) -> float | None:
        """Of the picture alone: a model's first one also loads it, packs it and measures kernels."""
        taken = self.record["report"]["seconds"] if self.record else None
        return taken["encode"] + sum(taken["steps"]) + taken["decode"] if taken else None

    @property
    def drawn_on(self) -> str | None:
        """The machine, and which rank that was of several that shared the cells out."""
        if self.record is None:
            return None
        report = self.record["report"]
        rank = report["choices"].get(RANK)
        return f"rank {rank}, {report['machine']['device']}" if rank else report["machine"]["device"]


def compare(
    columns: Sequence[Column], lines: Sequence[Line], parameters: dict[str, Any], folder: Path, tell: Notify
) -> list[list[Cell]]:
    """Columns of cells, as given. Each column is a process of its own that makes only what is not there yet."""
    cells = output_folder(folder / CELLS)
    return checked([made(column, lines, parameters, cells, tell) for column in columns])


def checked(sheet: list[list[Cell]]) -> list[list[Cell]]:
    """Raises where there is nothing to be seen."""
    if not any(cell.record for column in sheet for cell in column):
        raise RequestError(f"no picture could be made. {missing(sheet)[0]}")
    return sheet


def made(column: Column, lines: Sequence[Line], parameters: dict[str, Any], folder: Path, tell: Notify) -> list[Cell]:
    """A column's cells."""
    cells = prepared(column, lines, parameters, folder, tell)
    if wanted := {index: cell for index, cell in enumerate(cells) if cell.is_wanted}:
        with Worker(column.model, column.quant, column.precision) as worker:
            for index, cell in _answers(worker, wanted, parameters):
                cells[index] = cell
                tell(f"{column.label}, {cell.line.axis}: {cell.reason or f'{short(cell.seconds)} s'}")
    return cells


def prepared(
    column: Column, lines: Sequence[Line], parameters: dict[str, Any], folder: Path, tell: Notify
) -> list[Cell]:
    """A column's cells: there from before, wanted, or none of them to be had."""
    try:
        identity = identified(column.model, column.quant, parameters, column.precision)
    except (ImagegenError, OSError) as error:
        reason = one_line(str(error))
        tell(f"{column.label}: {reason}")
        return [Cell(column, line, reason=reason) for line in lines]
    cells = [found(column, line, folder / f"{slug(column.label)}-{key(identity, line)}.png") for line in lines]
    if there := sum(not cell.is_wanted for cell in cells):
        tell(f"{column.label}: {there} of {len(cells)} are there from before")
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
    model, recipe = opened_as(name, quant)
    pictures = [fingerprint(open_picture(path, alpha=True)) for path in parameters.get("references", ())]
    status = {name: path.stat() for name, path in model_files(model).items()} if model.folder else {}
    stamps = [f"{Path(name).name} {each.st_size} {each.st_mtime_ns}" for name, each in status.items()]
    return {
        "model": model.requested_as,  # two folders' files can have the same stamp
        "manifest": repr(model.manifest),
        "files": stamps if model.folder else model.manifest.revision,  # a stamp changes when a file of the model does
        "recipe": recipe,
        "parameters": parameters | {"references": pictures} if pictures else parameters,
        "versions": [__version__, importlib.metadata.version("mlx")],
        **({"precision": precision} if precision else {}),
    }


def opened_as(name: str, quant: str) -> tuple[Model, str | None]:
    """A column's model, and what tells its recipe from others."""
    try:
        model = find(name)
    except UnknownModelError:  # of a repository that no manifest names the files have to be here to say what it is
        model, folder = locate(name)
        model = replace(model, folder=folder)
    return model, None if quant == AS_STORED else read_recipe(quant, model.manifest.family).digest


def key(identity: dict[str, Any], line: Line) -> str:
    text = json.dumps(identity | {"prompt": line.text}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_files(model: Model) -> dict[str, Path]:
    """Those that make its pictures, by names that do not depend on where they lie: of its folder, or of others in which
    that has its tensors; and that of a bundled LoRA that makes the model out of its base."""
    assert model.folder
    if model.file:
        files = sources(model.folder)
        notes = {str(Path(name).with_suffix(".json")): path.with_suffix(".json") for name, path in files.items()}
        files |= {name: path for name, path in notes.items() if path.is_file()}
    else:
        inside = [path for path in model.folder.rglob("*") if path.suffix in (".safetensors", ".gguf", ".json")]
        files = {path.relative_to(model.folder).as_posix(): path for path in sorted(inside)}
    own = model.manifest.extras.get("lora", {})
    return files | ({own["file"]: data_folder("weights") / own["file"]} if own and "repo" not in own else {})


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
    if is_toml:
        data = parse_toml(text, f"--prompts: {path} cannot be read:", RequestError, AS_EXAMPLE).get("prompt")
    else:
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
        texts = entry.values() if isinstance(entry, dict) and set(entry) == {"axis", "text"} else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            where = f"--prompts: {path}, prompt {number}"
            raise RequestError(f"{where}: a prompt has an axis and a text, and nothing else.")
        lines.setdefault(entry["text"].strip(), Line(entry["axis"], entry["text"].strip()))
    return list(lines.values())


def missing(sheet: Sequence[Sequence[Cell]]) -> list[str]:
    """Why cells are missing, each reason of a column once."""
    every = [cell for cells in sheet for cell in cells]
    return list(dict.fromkeys(f"{cell.column.label}: {cell.reason}" for cell in every if cell.reason))
