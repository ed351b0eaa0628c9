"""A component put together from rows of tensors in other files: the index that says which, written and read.

In: names, each with a stored tensor and a run of its rows. Out: `index`, JSON for a folder; `open_parts`, the tensors
by those names. So a file of another layout, of which a component is a part, is opened as a component's folder is.
Must not know: families, layouts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..escaping import shown
from .derived import ChannelsLastTensor, InterleavedTensor, JoinedTensor, NumbersTensor, RowsTensor
from .names import Join
from .tensor import REMEDY, Tensor

INDEX = "parts.safetensors.index.json"  # a folder's index, of another kind than that over shards
PARTS, FILES, UNPACKED, JOINED = "parts", "files", "unpacked", "joined"
PACKED_PARTS = (".scales", ".biases")  # of a weight; an unpacked one has none


@dataclass(frozen=True)
class Part:
    """One tensor of the component, and where its rows are."""

    name: str
    file: Path
    tensor: str  # in the file
    row: int = 0
    rows: int | None = None  # all, where there is none
    swap_halves: bool = False
    channels_last: bool = False  # of a convolution
    numbers_of: tuple[int, int] | None = None  # bits and group size of codes that are read as numbers
    interleaved: int = 0  # how many rows a head has, in which those of two halves alternate
    join: Join | None = None

    @property
    def key(self) -> str:
        """In the index."""
        return self.name if self.join is None else f"{self.name}/{self.join.piece}"


def index(parts: Iterable[Part]) -> dict[str, Any]:
    parts = list(parts)
    files = sorted({str(part.file.absolute()) for part in parts})
    numbers = {file: number for number, file in enumerate(files)}
    rows = {
        part.key: [
            numbers[str(part.file.absolute())], part.tensor, part.row, part.rows, part.swap_halves, part.channels_last,
            part.numbers_of, part.interleaved,
        ]
        for part in parts
    }  # fmt: skip
    joined = {part.name: part.join[1:] for part in parts if part.join}
    return {FILES: files, PARTS: rows, **({JOINED: joined} if joined else {})}


def unpacked_index(data: Mapping[str, Any], packed: Collection[str]) -> dict[str, Any]:
    """An index of the same parts with the numbers of these modules' weights in the place of their codes."""
    gone = {module + part for module in packed for part in PACKED_PARTS}
    parts = {
        name: [*place, None, head] for name, (*place, _, head) in data[PARTS].items() if name not in gone
    }  # whose weights are numbers already
    return {**data, PARTS: parts, UNPACKED: True}


def open_parts(
    data: Mapping[str, Any], where: Path, open_file: Callable[[Path, bool], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of an index, and the files that they are in. `open_file`: a file's tensors by name, its weights
    packed or not."""
    try:
        paths = [Path(file) for file in data[FILES]]
        opened = [open_file(path, not data.get(UNPACKED)) for path in paths]
        tensors: dict[str, Tensor] = {}
        for name, (number, stored, *run, swap_halves, channels_last, numbers_of, head) in data[PARTS].items():
            if stored not in opened[number]:
                raise CheckpointError(f"{paths[number]} has no tensor '{shown(stored)}' any more; open it again.")
            source = opened[number][stored]
            source = NumbersTensor.of(opened[number], stored, *numbers_of) if numbers_of else source
            source = ChannelsLastTensor.of(source) if channels_last else source
            source = InterleavedTensor.of(source, head) if head else source
            tensors[name] = RowsTensor.of(name, source, *_run(source, *run), swap_halves is True)
        for name, (count, axis) in data.get(JOINED, {}).items():
            pieces = [tensors.pop(key) for piece in range(count) if (key := f"{name}/{piece}") in tensors]
            if len(pieces) < count:
                raise CheckpointError(
                    f"{pieces[0].path} has {len(pieces)} of the {count} tensors for '{shown(name)}'. {REMEDY}"
                )
            tensors[name] = JoinedTensor.of(name, pieces, axis)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} is not an index of parts ({shown(repr(error))}); remove its folder.") from error
    return tensors, paths


def _run(source: Tensor, row: object, rows: object) -> tuple[int, int | None]:
    """A run of the tensor's rows, which it has."""
    if rows is None and row == 0 and type(row) is int:
        return row, None
    if type(row) is int and type(rows) is int and source.shape and 0 <= row <= row + rows <= source.shape[0]:
        return row, rows
    raise ValueError(f"rows {row} and {rows} more")
