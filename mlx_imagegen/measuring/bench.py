"""`bench`: one picture by several quants and sizes -> seconds a stage, memory, and how far each is from the best.

In: what is `Asked`. Out: rows for tables, files and a plot. Each row is measured in a process of its own (worker.py),
whose first pictures warm it up: they are shown (cold load, warm-up) and counted nowhere else.
Must not know: families, the command line.
"""

import itertools
import statistics
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..documents import json_text
from ..errors import RequestError
from ..hub.download import Notify
from ..image import open_picture, write_picture
from ..machine import GB
from . import tables
from .environment import environment, measured_on
from .quality import Quality, compared
from .sheet import Bar, bar_chart
from .tables import NONE, decibels, gigabytes, short, slug
from .worker import Failed, Rendered, Worker

STAGES = ("load", "encode", "prepare", "steps", "decode", "other", "unseen", "total")
# A clock around all of it and the stages' own agree to this part of the total, or the row says that they do not.
UNSEEN_SHARE = 0.02


@dataclass(frozen=True)
class Asked:
    """What to measure: every model with every quant at every size."""

    models: Sequence[str]
    quants: Sequence[str]  # recipes, or AS_STORED
    sizes: Sequence[tuple[int, int] | None]  # None: the model's own
    prompt: str
    parameters: dict[str, Any]  # steps, seed …: as generate() takes them
    repeat: int = 3
    warm_up: int = 1
    caches: Sequence[float | str] = ()  # step caches to measure, next to none
    precisions: Sequence[str | None] = (None,)  # of the denoiser; None: the usual one


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float

    def shown(self) -> str:
        if self.least == self.most:
            return short(self.median)
        return f"{short(self.median)} ({short(self.least)}–{short(self.most)})"


@dataclass
class Row:
    """One quant of one model at one size."""

    model: str
    quant: str
    size: tuple[int, int] | None
    reason: str | None = None  # why there is nothing else
    cache: float | str | None = None  # as it was asked for
    precision: str | None = None  # as it was asked for
    reused_steps: int = 0
    steps: int = 0
    manifest: str = ""
    denoiser: str = ""
    seconds: dict[str, Spread] = field(default_factory=dict)  # by stage
    processor_seconds: Spread | None = None  # of the total; on the CPU backend it tells more than a busy wall clock
    step_seconds: Spread | None = None
    cold_load_seconds: float = 0.0  # a fresh process's first; the system may still have the files in memory
    warm_up_seconds: list[float] = field(default_factory=list)  # totals
    mlx_peak_bytes: dict[str, int] = field(default_factory=dict)  # by stage
    process_peak_bytes: dict[str, int] = field(default_factory=dict)  # the most so far, when the stage was over
    weight_bytes: int = 0
    quality: Quality | None = None
    reference: str | None = None  # the quant that `quality` is against
    picture: str | None = None
    notes: list[str] = field(default_factory=list)
    runs: list[dict[str, float]] = field(default_factory=list)  # each measured run's seconds by stage

    @property
    def name(self) -> str:
        size = f" {self.size[0]}x{self.size[1]}" if self.size else ""
        return f"{self.model} {self.way}{size}"

    @property
    def way(self) -> str:
        return self.computed if self.cache is None else f"{self.computed}, cache {self.cache}"

    @property
    def computed(self) -> str:
        """Without its step cache."""
        return self.quant if self.precision is None else f"{self.quant}, {self.precision}"

    @property
    def same(self) -> Hashable:
        """Equal where only the step cache differs."""
        return self.model, self.computed, self.size

    @property
    def peak_bytes(self) -> int:
        return max(self.mlx_peak_bytes.values(), default=0)


def bench(asked: Asked, folder: Path, tell: Notify) -> Iterator[Row]:
    """Measures one cell after the other; pictures go to `folder`. A cell that fails says why in its row."""
    if asked.repeat < 1:
        raise RequestError(f"repeat {asked.repeat}: give at least 1, how many runs of each are measured.")
    if asked.warm_up < 0:
        raise RequestError(f"warm-up {asked.warm_up}: give 0 or more, how many runs come before those.")
    lost: dict[str, str] = {}  # models that cannot be had at all, and why: asking again would take as long again
    for number, row in enumerate(_rows(asked), 1):
        row.reason = lost.get(row.model)
        if not row.reason:
            name = f"{number:02}-{slug(row.model)}-{slug(row.way.replace(', ', '-'))}.png"
            failed = measured(row, asked, folder / name)
            if failed and failed.scope == "model":
                lost[row.model] = failed.reason
            tell(f"{row.name}: " + (f"skipped: {row.reason}" if row.reason else f"{row.seconds['total'].shown()} s"))
        yield row


def measured(row: Row, asked: Asked, path: Path) -> Failed | None:
    """Fills the row in by a fresh process; gives what went wrong."""
    parameters = dict(asked.parameters)
    if row.size:
        parameters |= {"width": row.size[0], "height": row.size[1]}
    if row.cache is not None:
        parameters["cache"] = row.cache
    runs: list[Rendered] = []
    with Worker(row.model, row.quant, row.precision) as worker:
        for _ in range(asked.warm_up + asked.repeat):
            made = worker.render(asked.prompt, path, parameters, reopen=True)
            if isinstance(made, Failed):
                row.reason = made.reason
                return made
            runs.append(made)
    _fill(row, runs[: asked.warm_up], runs[asked.warm_up :])
    return None


def _fill(row: Row, warm_up: Sequence[Rendered], runs: Sequence[Rendered]) -> None:
    last, first = runs[-1], [*warm_up, *runs][0]
    row.size = (last.record["width"], last.record["height"])
    row.steps, row.manifest, row.denoiser = last.record["steps"], last.record["manifest"], last.denoiser
    row.picture, row.weight_bytes = Path(last.path).name, last.weight_bytes
    row.runs = [run.seconds for run in runs]
    row.seconds = {stage: _spread([run[stage] for run in row.runs]) for stage in STAGES}
    row.step_seconds = _spread([step for run in runs for step in run.report["seconds"]["steps"]])
    row.processor_seconds = _spread([run.processor_seconds for run in runs])
    row.cold_load_seconds = first.seconds["load"]
    row.warm_up_seconds = [run.wall_seconds for run in warm_up]
    # Without the warm-up, which may have measured kernels; what the system says of a process is its most so far.
    for run in runs:
        for stage, peak in run.report["peak_bytes"]["mlx"].items():
            row.mlx_peak_bytes[stage] = max(peak, row.mlx_peak_bytes.get(stage, 0))
    row.process_peak_bytes = first.report["peak_bytes"]["process_after"]
    row.notes = list(last.report["notes"])
    row.reused_steps = int(last.report["choices"].get("step cache", "0").split()[0])
    unseen = row.seconds["unseen"].median / row.seconds["total"].median
    if unseen > UNSEEN_SHARE:
        row.notes.append(f"{unseen:.0%} of the total passed between the stages, as on a machine that is busy.")


def compare_pictures(rows: Sequence[Row], folder: Path) -> None:
    """Each against the heaviest of its model and size. The heaviest itself against what is heavier under another name:
    a quantized copy against its source. Models of the same weight are two models, of which neither is right. A picture
    with a step cache against the same without."""
    made = [(row, open_picture(folder / row.picture)) for row in rows if row.picture]
    for row, picture in made:
        alike = [each for each in made if (each[0].manifest, each[0].size) == (row.manifest, row.size)]
        computed = [each for each in alike if each[0].cache is None]  # every step
        heavier = [each for each in computed if each[0].weight_bytes > row.weight_bytes]
        if row.cache is not None:
            if own := [reference for each, reference in computed if each.same == row.same]:
                row.quality, row.reference = compared(picture, own[0]), f"{row.computed}, no cache"
        elif heavier:
            best, reference = max(heavier, key=lambda pair: (pair[0].model == row.model, pair[0].weight_bytes))
            row.quality = compared(picture, reference)
            row.reference = best.computed if best.model == row.model else f"{best.model} {best.computed}"


TIMES = (
    "model", "quant", "size", "steps", "warm-up", "load cold", "load warm", "encode", "prepare", "a step", "decode",
    "other", "total", "processor",
)  # fmt: skip
SPACE = (
    "model", "quant", "size", "weights GB", "MLX peak GB", "process peak GB", "PSNR dB", "SSIM", "GMSD", "difference",
    "brightness", "contrast %", "flat shift, grain", "against",
)  # fmt: skip
CACHES = (
    "model", "quant", "size", "steps", "reused", "steps s", "of no cache's", "PSNR dB", "SSIM", "GMSD", "difference",
)  # fmt: skip


def cache_rows(rows: Sequence[Row]) -> list[list[str]]:
    """What step caches save and change; nothing without one."""
    plain = {row.same: row for row in rows if row.cache is None and not row.reason}
    return [
        [
            *_which(row), str(row.steps), f"{row.reused_steps / row.steps:.0%}", row.seconds["steps"].shown(),
            NONE if before is None else short(row.seconds["steps"].median / before.seconds["steps"].median),
            *_quality(row.quality)[:4],
        ]
        for row in rows
        if row.cache is not None and not row.reason
        for before in [plain.get(row.same)]
    ]  # fmt: skip


def time_rows(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            *_which(row), str(row.steps), short(sum(row.warm_up_seconds)) if row.warm_up_seconds else NONE,
            short(row.cold_load_seconds), row.seconds["load"].shown(),
            short(row.seconds["encode"].median), short(row.seconds["prepare"].median),
            row.step_seconds.shown() if row.step_seconds else NONE, short(row.seconds["decode"].median),
            short(row.seconds["other"].median), row.seconds["total"].shown(),
            row.processor_seconds.shown() if row.processor_seconds else NONE,
        ]
        for row in rows
        if not row.reason
    ]  # fmt: skip


def space_rows(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            *_which(row), gigabytes(row.weight_bytes), gigabytes(row.peak_bytes),
            gigabytes(max(row.process_peak_bytes.values())), *_quality(row.quality), row.reference or NONE,
        ]
        for row in rows
        if not row.reason
    ]  # fmt: skip


def _quality(quality: Quality | None) -> list[str]:
    if quality is None:
        return [NONE] * 7
    flat = quality.flat_shift_levels, quality.flat_grain_levels
    return [
        decibels(quality.psnr_db), f"{quality.ssim:.4f}", f"{quality.gmsd:.4f}", short(quality.mean_difference_levels),
        f"{quality.brightness_shift_levels:+z.2f}", f"{quality.contrast_shift_percent:+z.2f}",
        " ".join(NONE if each is None else f"{each:.2f}" for each in flat),
    ]  # fmt: skip


def _which(row: Row) -> list[str]:
    width, height = row.size or (0, 0)
    return [row.model, row.way, f"{width}x{height}"]


def skipped(rows: Sequence[Row]) -> list[str]:
    return _said((row, row.reason) for row in rows if row.reason)


def noted(rows: Sequence[Row]) -> list[str]:
    return _said((row, note) for row in rows for note in row.notes)


def _said(words: Iterable[tuple[Row, str]]) -> list[str]:
    """Each once, with all of a model's rows that it is true of."""
    names: dict[tuple[str, str], list[str]] = {}
    for row, text in words:
        names.setdefault((row.model, text), []).append(row.name.removeprefix(f"{row.model} "))
    return [f"{model} {', '.join(those)}: {text}" for (model, text), those in names.items()]


def in_terminal(rows: Sequence[Row]) -> str:
    parts = ["seconds, median (least–most)", tables.aligned(TIMES, time_rows(rows)), ""]
    parts += ["memory; difference from the best quant, in levels of 255", tables.aligned(SPACE, space_rows(rows))]
    if cached := cache_rows(rows):
        parts += ["", "step caches; difference from the same picture without", tables.aligned(CACHES, cached)]
    parts += [f"note: {line}" for line in noted(rows)] + [f"skipped: {line}" for line in skipped(rows)]
    return "\n".join(parts)


def in_markdown(rows: Sequence[Row], asked: Asked, where: dict[str, str | None]) -> str:
    cached = cache_rows(rows)
    caches = ["Step caches, against the same picture without.", "", tables.markdown(CACHES, cached), ""]
    parts = [
        f"Seconds: median of {asked.repeat} runs (least–most), after {asked.warm_up} to warm up, shown but not counted."
        " By the wall's clock; the last column is the processor's time for the total, over all threads."
        " Each row ran in a process of its own.", "", tables.markdown(TIMES, time_rows(rows)), "",
        "Memory; quality against the highest precision of the run with the same seed, in levels of 255.", "",
        tables.markdown(SPACE, space_rows(rows)), "", *(caches if cached else []),
        *[f"- note: {line}" for line in noted(rows)], *[f"- skipped: {line}" for line in skipped(rows)],
        "", measured_on(where), "",
    ]  # fmt: skip
    return "\n".join(parts)


def write(rows: Sequence[Row], asked: Asked, folder: Path, plot: bool) -> None:
    """bench.json, bench.csv, bench.md and, if asked for, plot.png."""
    where = environment()
    data = {"asked": asdict(asked), "where": where, "rows": [asdict(row) for row in rows]}
    tables.write_text(folder / "bench.json", json_text(data))
    tables.write_csv(folder / "bench.csv", [_flat(row) | where for row in rows])
    tables.write_text(folder / "bench.md", in_markdown(rows, asked, where))
    if plot:
        write_picture(chart(rows, where), folder / "plot.png")


def chart(rows: Sequence[Row], where: dict[str, str | None]) -> Image.Image:
    """Seconds a step and memory over quant."""
    made = [row for row in rows if row.step_seconds]
    named = 0 if len({row.model for row in made}) > 1 else 1  # a model's name only where there are several
    labels = [" ".join(_which(row)[named:]) for row in made]
    steps = [row.step_seconds.median for row in rows if row.step_seconds]
    peaks = [row.peak_bytes / GB for row in made]
    return bar_chart(
        {"seconds a step": list(map(Bar, labels, steps)), "MLX's peak of memory, GB": list(map(Bar, labels, peaks))},
        f"{where['device']}, {where['platform']}, mlx {where['mlx']}",
    )


def _flat(row: Row) -> dict[str, Any]:
    """A line of the CSV file: plain numbers, one a column."""
    width, height = row.size or (None, None)
    flat: dict[str, Any] = {
        "model": row.model, "quant": row.quant, "precision": row.precision, "width": width, "height": height,
        "steps": row.steps,
        "denoiser": row.denoiser, "cache": row.cache, "reused_steps": row.reused_steps, "reason": row.reason,
        "cold_load_seconds": row.cold_load_seconds, "weight_bytes": row.weight_bytes,
    }  # fmt: skip
    spreads = {**row.seconds, "step": row.step_seconds, "processor": row.processor_seconds}
    for stage, spread in spreads.items():
        if spread is not None:
            flat |= {f"{stage}_seconds": spread.median, f"{stage}_least": spread.least, f"{stage}_most": spread.most}
    flat |= {f"mlx_peak_bytes_{stage}": peak for stage, peak in row.mlx_peak_bytes.items()}
    flat |= {f"process_peak_bytes_{stage}": peak for stage, peak in row.process_peak_bytes.items()}
    return flat | (asdict(row.quality) if row.quality else {})


def _rows(asked: Asked) -> list[Row]:
    """Each once, however often it is asked for."""
    ways = itertools.product(asked.models, asked.sizes, asked.quants, asked.precisions, (None, *asked.caches))
    return [
        Row(model, quant, size, cache=cache, precision=precision)
        for model, size, quant, precision, cache in dict.fromkeys(ways)
    ]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
