"""Tables for people: aligned for a terminal, or as Markdown; and the files they are kept in.

Must not know: what the numbers mean.
"""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..image import check_writable, write_bytes
from ..machine import GB
from ..paths import expanded

Row = Sequence[str]
NONE = "–"


def aligned(header: Row, rows: Iterable[Row]) -> str:
    """The first column to the left, numbers to the right."""
    columns = []
    for head, *cells in zip(header, *rows, strict=True):
        width, numbers = max(map(len, (head, *cells))), any(map(_is_number, cells))
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in (head, *cells)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def markdown(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def short(value: float | None) -> str:
    """A number in three digits, never as an exponent."""
    if value is None:
        return NONE
    whole = str(int(abs(value)))
    return f"{value:.{max(0, 3 - (len(whole) if whole != '0' else 0))}f}"


def gigabytes(count: int) -> str:
    """Small models' too."""
    return f"{count / GB:.3g}" if count < GB / 10 else short(count / GB)


def decibels(psnr_db: float | None) -> str:
    """A `Quality`'s: None is of equal pictures."""
    return "∞" if psnr_db is None else short(psnr_db)


def slug(name: str) -> str:
    """The last part of a model's or a recipe's name, as a part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).name)


def output_folder(path: Path) -> Path:
    """Created if it is not there, and known to be writable before any work is done for it."""
    path = expanded(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be created ({error.strerror}); choose another place.") from error
    check_writable(path / "report")
    return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """`output_folder`; one that was not there before is removed again where nothing was written to it."""
    was_there = expanded(path).exists()
    folder = output_folder(path)
    try:
        yield folder
    finally:
        for place in [] if was_there else [*folder.iterdir(), folder]:
            with contextlib.suppress(OSError):  # it holds something
                place.rmdir()


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line a row; columns in the order in which they are first met."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell in (NONE, "∞") or (cell[:1] in "-+" and cell[1:2].isdigit())
