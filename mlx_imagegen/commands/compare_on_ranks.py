"""`compare` on several ranks that MLX's launcher started: whichever is free makes the next cell, rank 0 the sheet.

In: the command line, the same on every rank. Out: the sheet, tables and lines of a single process, from rank 0 alone.
A rank that lacks a column's model, or cannot hold it, leaves the column to those that can.
"""

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..distributed.agreement import difference, digest
from ..distributed.group import Group
from ..distributed.messages import Message
from ..distributed.pictures import DECLINED, FAILED, draw_pictures, gone
from ..distributed.requests import packed, unpacked
from ..errors import ImagegenError
from ..escaping import one_line
from ..families import family_spec
from ..hub.download import notify_stderr
from ..image import write_bytes
from ..launched import Launch
from ..measuring.compare import (
    CELLS,
    RANK,
    Cell,
    Column,
    checked,
    model_files,
    opened_as,
    prepared,
    read_columns,
    read_lines,
)
from ..measuring.compare_tables import in_terminal, write
from ..measuring.tables import new_folder, output_folder, short
from ..measuring.worker import Rendered, Worker
from ..precision import denoiser_precision
from .requests import same_for_all

WORDS = {"manifest": "the model {value}", "recipe": "another recipe", "precision": "a denoiser in {value}"}


def run_on_ranks(args: argparse.Namespace, launch: Launch) -> None:
    with Group(launch) as group, tempfile.TemporaryDirectory(prefix="mlx_imagegen_compare_") as temporary:
        (_follow if group.rank else _lead)(group, args, Path(temporary))


def _lead(group: Group, args: argparse.Namespace, temporary: Path) -> None:
    columns, lines, parameters = read_columns(args.models, args.precision), read_lines(args.prompts), same_for_all(args)
    with new_folder(args.output) as folder:
        group.share({"columns": [asdict(column) for column in columns], "parameters": packed(parameters)})
        identities = [each["identities"] for each in group.gather({"identities": list(map(identity, columns))})]
        refused = [differences(identities[0], other) for other in identities]
        place = output_folder(folder / CELLS)
        sheet = [prepared(column, lines, parameters, place, notify_stderr) for column in columns]
        places = [
            (column, row) for column, cells in enumerate(sheet) for row, cell in enumerate(cells) if cell.is_wanted
        ]
        wanted = [(column, sheet[column][row].line.text) for column, row in places]
        group.share({"wanted": wanted, "refused": refused})
        work = Cells(group, columns, wanted, parameters, temporary, {}, [sheet[column][row] for column, row in places])
        if wanted:
            work.tell(f"{len(wanted)} picture{'s' * (len(wanted) > 1)} on {group.size} ranks")
        for rank, reasons in enumerate(refused):
            for number, reason in reasons.items():
                work.decline(int(number), reason, rank)
        _draw(work)
        for (column, row), cell in zip(places, work.finished(), strict=True):
            sheet[column][row] = cell
        work.tell(in_terminal(checked(sheet)))
        print(write(sheet, parameters, folder, work.tell))


def _follow(group: Group, args: argparse.Namespace, temporary: Path) -> None:
    message = group.share()
    columns = [Column(**column) for column in message["columns"]]
    parameters = unpacked(message["parameters"], temporary / "given")
    group.gather({"identities": list(map(identity, columns))})
    plan = group.share()
    _draw(Cells(group, columns, plan["wanted"], parameters, temporary, plan["refused"][group.rank]))


def _draw(work: "Cells") -> None:
    with work.opened:
        draw_pictures(work.group, work, [column for column, _ in work.wanted], lambda pool, rank: 1)


def identity(column: Column) -> dict[str, Any]:
    """What has to be the same on a rank that draws a column; or why it cannot."""
    try:
        model, recipe = opened_as(column.model, column.quant)
        spec = family_spec(model.manifest.family)
        precision = denoiser_precision(column.precision, spec.title, spec.fits_float16, spec.overflowing)
        files = {name: digest(path) for name, path in model_files(model).items()} if model.folder else {}
    except (ImagegenError, OSError) as error:
        return {"reason": one_line(str(error))}
    return {"manifest": model.manifest.name, "recipe": recipe, "precision": precision.name, "files": files}


def differences(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By column, why a rank cannot draw it as rank 0 would."""
    found = {}
    for column, (one, another) in enumerate(zip(first, other, strict=True)):
        if "reason" in one:
            continue  # of which there is no cell to be drawn
        reason = another.get("reason")
        if reason is None and (different := difference(one, another, WORDS)):
            reason = f"it has {different}; give all hosts the same files."
        if reason:
            found[str(column)] = reason
    return found


@dataclass
class Cells:
    """The wanted cells, by number: what is done where they are drawn, and on rank 0, by several threads there."""

    group: Group
    columns: Sequence[Column]
    wanted: Sequence[tuple[int, str]]  # of each, the column's number and the prompt
    parameters: dict[str, Any]
    folder: Path  # for a picture on its way
    refused: dict[str, str]  # by column, why this rank does not draw it
    cells: list[Cell] = field(default_factory=list)  # on rank 0
    opened: ExitStack = field(default_factory=ExitStack)  # what this rank has open: a model
    _reasons: dict[tuple[int, int], str] = field(default_factory=dict)  # why ranks do not draw a column
    _worker: tuple[int, Worker] | None = None  # a column's
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _quiet: bool = False

    def draw(self, indices: Sequence[int], on_step: Callable[[int, Message], None]) -> Iterator[tuple[int, Message]]:
        for index in indices:
            yield index, self._drawn(*self.wanted[index])

    def _drawn(self, column: int, prompt: str) -> Message:
        if reason := self.refused.get(str(column)):
            return {DECLINED: reason}
        path = self.folder / "cell.png"
        choices = {RANK: f"{self.group.rank} of {self.group.size}"}
        answer = self._worker_of(column).render(prompt, path, self.parameters, choices=choices)
        if isinstance(answer, Rendered):
            return {"picture": path.read_bytes(), "record": answer.record | {"report": answer.report}}
        if answer.scope == "picture":
            return {FAILED: answer.reason}
        self.refused[str(column)] = answer.reason
        return {DECLINED: answer.reason}

    def _worker_of(self, column: int) -> Worker:
        """One at a time: two models may be more than memory holds."""
        if self._worker is None or self._worker[0] != column:
            self.opened.close()
            model = self.columns[column]
            self._worker = column, self.opened.enter_context(Worker(model.model, model.quant, model.precision))
        return self._worker[1]

    def keep(self, index: int, finished: Message, rank: int) -> None:
        cell, name = self.cells[index], self.group.name(rank)
        if DECLINED in finished:
            self.decline(self.wanted[index][0], finished[DECLINED], rank)
            return
        if FAILED in finished:
            cell = replace(cell, path=None, reason=finished[FAILED])
        elif cell.path:
            write_bytes(cell.path, finished["picture"])
            cell = replace(cell, record=finished["record"])
        self.cells[index] = cell
        self.tell(f"{cell.column.label}, {cell.line.axis}: {cell.reason or f'{short(cell.seconds)} s'}, {name}")

    def decline(self, column: int, reason: str, rank: int) -> None:
        """On rank 0: why this rank does not draw the column, said once."""
        if (column, rank) not in self._reasons:
            self._reasons[column, rank] = reason
            self.tell(f"{self.columns[column].label}: {self.group.name(rank)}: {reason}")

    def show(self, index: int, observed: Message, rank: int) -> None:
        """A cell shows no steps."""

    def lose(self, rank: int, indices: Sequence[int]) -> None:
        """The launcher reads nothing from here on (generate_on_ranks.py): nothing is said that need not be."""
        self.tell(gone(self.group.name(rank), len(indices)))
        self._quiet = True

    def finished(self) -> list[Cell]:
        """With reasons for those that no rank could draw."""
        return [
            replace(cell, path=None, reason=self._reason(column)) if cell.is_wanted else cell
            for cell, (column, _) in zip(self.cells, self.wanted, strict=True)
        ]

    def _reason(self, column: int) -> str:
        """The ranks', each once."""
        reasons = dict.fromkeys(reason for (of, _), reason in self._reasons.items() if of == column)
        return " ".join(reasons) or "no rank was left to draw it."

    def tell(self, text: str) -> None:
        with self._turn:
            if not self._quiet:
                notify_stderr(text)
