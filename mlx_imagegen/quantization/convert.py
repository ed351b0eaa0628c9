"""Layouts -> files, in a stream: rows are read, changed and written at their final place; no tensor is held in full.

In: the layouts of an open family, and a folder to be (`Partial`). Out: that folder. Runs of rows are worked on by
several threads in any order: the headers say beforehand where every byte belongs.
Must not know: recipes' rows, families, how to print.
"""

import functools
import hashlib
import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
import numpy as np

from ..bfloat import to_bf16
from ..documents import write_json
from ..errors import CheckpointError, MissingFileError, QuantizationError
from ..hub.record import RECORD
from ..loading.checkpoint import DTYPES
from ..loading.transforms import Progress
from ..lora.merge import Merge
from ..packing.affine import pack, pack_rows
from .calibrate import Statistics, pack_calibrated
from .card import CARD
from .layout import Layout, Piece, Shard
from .partial import Journal, Partial

CHUNK = 1 << 21  # numbers read at a time by each worker: 4 MB of bf16
# The small files that belong to a checkpoint: configs, tokenizers, schedulers, licences.
COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".md"})
COPIED_NAMES = ("LICENSE", "NOTICE")
COPIED_BYTES = 100 * 10**6
CHANGED = (
    "{path} changed while it was read, so the output cannot be trusted and is not made; run it again when nothing "
    "writes to it."
)
Stamp = tuple[str, int, int, int]  # place, inode, size and time: differs whenever a file changes


@dataclass(frozen=True)
class Conversion:
    """Everything that decides what is written."""

    source: Path
    layouts: Sequence[Layout]
    search: bool
    record: Mapping[str, Any]
    merge: Merge = field(default_factory=Merge)
    # What calibration measured, by (component, path): it decides those weights' codes and biases.
    statistics: Mapping[tuple[str, str], Statistics] = field(default_factory=dict)
    # How much a layer's inputs count, where the weights say it, by (component, path).
    importance: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None  # the input of folded layers, [columns, D] in float64
    # The sources as they were when the layouts were made; as they are when writing begins, if not given.
    stamps: Mapping[Path, Stamp] | None = None
    card: str | None = None  # README.md's text

    def merges(self, piece: Piece) -> bool:
        """Whether a LoRA changes this piece."""
        return self.merge.touches(piece.component, piece.path, piece.parameter)


def identify(stamps: Mapping[Path, Stamp], layouts: Sequence[Layout], *more: object) -> str:
    names = [(piece.key, repr(piece.packing), piece.dtype) for layout in layouts for piece in layout.pieces]
    return hashlib.sha256(repr((list(stamps.values()), names, more)).encode()).hexdigest()


def convert(conversion: Conversion, partial: Partial, workers: int, progress: Progress | None = None) -> None:
    """Makes the folder, unless it is there already, made from the same."""
    if partial.is_complete:
        return
    partial.refuse_foreign_folder()
    if partial.is_written:
        partial.rename()
        return
    copies = list(_small_files(conversion.source, {partial.folder.resolve(), partial.target.resolve()}))
    tensors = sum(layout.nbytes for layout in conversion.layouts)
    partial.check_room(tensors + sum(path.stat().st_size for path in copies))
    with partial.explain_failures(), partial.journal() as journal:
        _write_tensors(conversion, partial.folder, journal, workers, progress)
        _write_small_files(conversion, partial.folder, copies)
        if conversion.card is not None:
            (partial.folder / CARD).write_text(conversion.card, encoding="utf-8")
        partial.seal(conversion.record)
        partial.rename()


def _write_tensors(
    conversion: Conversion, target: Path, journal: Journal, workers: int, progress: Progress | None
) -> None:
    before = conversion.stamps or stamps_of(conversion.layouts)
    with ExitStack() as stack:
        tasks = []
        for layout in conversion.layouts:
            folder = target / layout.place
            folder.mkdir(parents=True, exist_ok=True)
            for shard in layout.shards:
                file = stack.enter_context(_open_shard(folder / shard.name, shard))
                write_lock = threading.Lock()
                tasks += [Task(piece, file.fileno(), write_lock, shard) for piece in shard.pieces]
        _join_biases(conversion, tasks)
        todo = [task for task in tasks if task.piece.key not in journal.done and not task.written_with_weight]
        Work(conversion, todo, journal, before, progress).run(workers)
    if {path: _stamp(path) for path in before} != before:
        raise CheckpointError(CHANGED.format(path=conversion.source))


def _join_biases(conversion: Conversion, tasks: Sequence["Task"]) -> None:
    """A calibrated layer's bias is written with its weight, by whose error it is corrected."""
    biases = {(task.piece.component, task.piece.path): task for task in tasks if task.piece.parameter == "bias"}
    for task in tasks:
        place = task.piece.component, task.piece.path
        if task.piece.packing and place in conversion.statistics and place in biases:
            task.bias = biases[place]
            task.bias.written_with_weight = True


def _open_shard(path: Path, shard: Shard) -> IO[bytes]:
    """The file in its full length with its header, whatever is in it already; holes take no room on the disk."""
    file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    _write_at(file.fileno(), memoryview(shard.header), 0)
    file.truncate(shard.nbytes)
    return file


class Task:
    """One piece and where it goes."""

    def __init__(self, piece: Piece, file: int, write_lock: threading.Lock, shard: Shard):
        self.piece = piece
        self.file = file
        self.write_lock = write_lock  # one thread at a time may write to a file; in the kernel it would wait busily
        self.offsets = {part: shard.offsets[stored.name] for part, stored in piece.outputs.items()}
        self.runs = list(_runs(piece))
        self.remaining_runs = len(self.runs)
        self.bias: Task | None = None  # written by this task
        self.written_with_weight = False  # by another task


class Work:
    """The runs of all tasks, taken by several threads: numpy and reads let go of the interpreter's lock.

    MLX's arrays belong to the thread that made them, so the few runs that need it are done by the caller's own.
    """

    def __init__(
        self,
        conversion: Conversion,
        tasks: list[Task],
        journal: Journal,
        stamps: Mapping[Path, Stamp],
        progress: Progress | None,
    ):
        self._conversion, self._journal, self._stamps, self._progress = conversion, journal, stamps, progress
        runs = [(task, run) for task in tasks for run in task.runs]
        self._shared = deque((task, run) for task, run in runs if not self._needs_mlx(task.piece))
        self._own = deque((task, run) for task, run in runs if self._needs_mlx(task.piece))
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._total = sum(piece.count for layout in conversion.layouts for piece in layout.pieces)
        self._done = self._total - sum(task.piece.count for task in tasks)

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self._take, args=(self._shared,)) for _ in range(max(1, workers))]
        for thread in threads:
            thread.start()
        try:
            self._take(self._own)
            for thread in threads:
                thread.join()
        finally:  # Ctrl-C: the threads end after the rows they have in hand, before the files are closed
            self._stop()
            for thread in threads:
                thread.join()
        if self._error:
            raise self._error

    def _needs_mlx(self, piece: Piece) -> bool:
        bias = replace(piece, parameter="bias")
        merged = self._conversion.merges(piece) or self._conversion.merges(bias)
        return merged or (piece.packing is not None and piece.packing.mode != "affine")

    def _stop(self) -> None:
        self._shared.clear()
        self._own.clear()

    def _take(self, runs: deque[tuple[Task, tuple[int, int]]]) -> None:
        try:
            while True:
                try:
                    task, (row, rows) = runs.popleft()
                except IndexError:
                    return
                _convert_run(self._conversion, task, row, rows)
                with self._lock:
                    task.remaining_runs -= 1
                    last = task.remaining_runs == 0
                if last:
                    self._finish(task)
        except Exception as error:  # carried to the caller's thread
            self._error = self._error or error
            self._stop()

    def _finish(self, task: Task) -> None:
        """Into the journal, unless the source has changed since the run began: then nothing of it can be trusted."""
        path = task.piece.part.path
        if _stamp(path) != self._stamps[path]:
            raise CheckpointError(CHANGED.format(path=path))
        for written in filter(None, (task, task.bias)):
            os.fsync(written.file)  # not even a power cut may leave the journal ahead of the weights
        self._journal.finish(task.piece.key)
        with self._lock:
            self._done += task.piece.count
            if self._progress:
                self._progress(task.piece.component, self._done, self._total)


def _runs(piece: Piece) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the written tensor, about CHUNK numbers."""
    if not piece.part.shape:
        yield 0, 1
        return
    rows = piece.part.shape[0]
    step = max(1, CHUNK // max(1, math.prod(piece.part.full_shape[1:])))  # numbers, where codes are packed too
    yield from ((row, min(step, rows - row)) for row in range(0, rows, step))


def _convert_run(conversion: Conversion, task: Task, row: int, rows: int) -> None:
    piece, part = task.piece, task.piece.part
    if piece.columns:
        _write_rows(task, "table", row, _table_rows(conversion, piece, row, rows))
        return
    if piece.packing is None and piece.dtype == part.dtype and not conversion.merges(piece):
        _write_rows(task, piece.parameter, row, part.bytes(row, rows))
        return
    values = _merged(conversion, piece, row, rows)
    if piece.packing is None:
        _write_rows(task, piece.parameter, row, _as_stored(values, piece.dtype))
        return
    layer = piece.component, piece.path
    statistics = conversion.statistics.get(layer)
    try:
        if statistics is None:
            parts, shift = pack_rows(values, piece.packing, conversion.search, conversion.importance.get(layer)), None
        else:
            parts, shift = pack_calibrated(values, piece.packing, statistics)
    except QuantizationError as error:
        raise QuantizationError(f"{part.path}, '{part.name}': {error}") from error
    if task.bias is not None and shift is not None:
        _write_bias(conversion, task.bias, row, shift)
    for name, packed in parts.items():
        _write_rows(task, name, row, packed)


def _merged(conversion: Conversion, piece: Piece, row: int, rows: int) -> np.ndarray:
    """Rows in float32, with every LoRA."""
    values, merge = piece.part.floats(row, rows), conversion.merge
    if not conversion.merges(piece):
        return values
    plain = mx.array(values)
    merged = merge.rows(piece.component, piece.path, piece.parameter, plain, row, piece.part.shape[0])
    if row == 0 and piece.packing:
        pack_one = functools.partial(pack, search=conversion.search)
        merge.measure(piece.component, piece.path, plain, merged, pack_one, piece.packing)
    return np.array(merged)


def _table_rows(conversion: Conversion, piece: Piece, row: int, rows: int) -> np.ndarray:
    """A folded layer's outputs for every input, [rows, columns]: summed in float64, so that the order of the sum, which
    is the machine's, does not show."""
    assert conversion.inputs is not None
    table: np.ndarray = _merged(conversion, piece, row, rows).astype(np.float64) @ conversion.inputs.T
    if piece.bias is not None:
        bias = replace(piece, parameter="bias", part=piece.bias)
        table += _merged(conversion, bias, row, rows)[:, None]
    stored: np.ndarray = table.astype(np.float32)
    return stored


def _write_bias(conversion: Conversion, task: Task, row: int, shift: np.ndarray) -> None:
    piece = task.piece
    values = _merged(conversion, piece, row, len(shift)) + shift
    _write_rows(task, piece.parameter, row, _as_stored(values, piece.dtype))


def _as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return to_bf16(values) if dtype == "BF16" else values.astype(DTYPES[dtype][0])


def _write_rows(task: Task, name: str, row: int, values: np.ndarray) -> None:
    data = np.ascontiguousarray(values).reshape(-1).data.cast("B")
    offset = task.offsets[name] + (row * (len(data) // len(values)) if values.ndim else 0)
    with task.write_lock:
        _write_at(task.file, data, offset)


def _write_at(file: int, data: memoryview, offset: int) -> None:
    """One write gives at most 2 GB to the file, and may give less."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _small_files(source: Path, outputs: set[Path]) -> Iterator[Path]:
    """What else belongs to the checkpoint. Links, as the hub's cache has them, are followed; not in circles, and not
    into our own output."""
    for name, folders, names in os.walk(source, onerror=_unreadable, followlinks=True):
        here = Path(name)
        closed = {*outputs, here.resolve(), *here.resolve().parents}
        folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() not in closed)
        yield from (path for path in map(here.joinpath, sorted(names)) if _belongs(path))


def _unreadable(error: OSError) -> None:
    raise MissingFileError(
        f"{error.filename} cannot be read ({error.strerror}), so the copy would lack what is in it; see to its "
        "permissions."
    ) from error


def _belongs(path: Path) -> bool:
    kind = path.suffix in COPIED or path.name.startswith(COPIED_NAMES)
    written_by_us = path.name == RECORD or ".safetensors.index." in path.name or path.name[0] == "."  # variants' too
    return kind and not written_by_us and path.is_file() and path.stat().st_size <= COPIED_BYTES


def _write_small_files(conversion: Conversion, target: Path, copies: Sequence[Path]) -> None:
    for path in copies:
        place = target / path.relative_to(conversion.source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for layout in conversion.layouts:
        folder = target / layout.place
        config, index = layout.written_config(), layout.index()
        if config is not None:
            write_json(folder / "config.json", config)
        if index is not None:
            write_json(folder / layout.index_name(), index)


def stamps_of(layouts: Sequence[Layout]) -> dict[Path, Stamp]:
    """Of the source files."""
    return {path: _stamp(path) for path in sorted({piece.part.path for layout in layouts for piece in layout.pieces})}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} went away while it was read; nothing was written to the output.") from error
    return str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns
