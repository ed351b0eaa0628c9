"""`generate`: requests in, pictures out. Flags are named like the API's parameters."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .names import DEFAULT_PATTERN, FIELDS, output_paths
from .requests import read_requests

if TYPE_CHECKING:
    from ..job import Job
    from ..pipeline import Pipeline, Result, StepEvent


def flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument("prompt", nargs="?", help="what the picture should show, in quotes; - reads prompts from standard input")
    what.add_argument("--prompt-file", type=Path, metavar="FILE", help="prompts, one a line; or jobs, one JSON object a line")
    what.add_argument("--from", type=Path, dest="replay", metavar="PNG", help="make this picture again; other flags override")
    what.add_argument("--model", help="a name (see `mlx-imagegen models`), a repository id or a folder")
    what.add_argument("--negative-prompt", help="what it should not show; needs a second branch, see --guidance, --true-cfg")

    how = parser.add_argument_group("how", "what is not given, the model's manifest says")
    how.add_argument("--seed", type=_seeds, action="extend", metavar="N|A-B", help="repeat it, or give a range, for more")
    how.add_argument("--count", type=int, help="this many pictures, with seeds from the first upwards")
    how.add_argument("--steps", type=int)
    how.add_argument("--width", type=int, help="in pixels")
    how.add_argument("--height", type=int, help="in pixels")
    how.add_argument("--size", type=_size, metavar="WxH", help="width and height at once")
    how.add_argument("--guidance", type=float, help="how closely to follow the prompt")
    how.add_argument("--true-cfg", type=float, help="the scale between prompt and negative prompt, where guidance is not that")
    how.add_argument("--max-sequence-length", type=int, metavar="TOKENS", help="how much of the prompt is read")
    how.add_argument("--noise", type=Path, metavar="NPY", help="the starting noise, as diffusers takes it: [1, 16, H/8, W/8]")

    pictures = parser.add_argument_group("pictures to start from")
    pictures.add_argument("--image", type=Path, help="change this picture")
    pictures.add_argument("--strength", type=float, help="by how much: above 0 (keep it) to 1 (replace it)")
    pictures.add_argument("--references", type=Path, nargs="+", metavar="FILE", help="pictures the prompt speaks of, for editing")

    out = parser.add_argument_group("output")
    out.add_argument(
        "-o", "--output", default=DEFAULT_PATTERN, metavar="PATTERN",
        help=f"a file's name or a folder; {', '.join('{' + name + '}' for name in FIELDS)} are filled in ({DEFAULT_PATTERN})",
    )  # fmt: skip
    out.add_argument("--preview-every", type=int, metavar="N", help="write the unfinished picture every N steps")
    out.add_argument("--json", action="store_true", help="print each picture's record and report as one JSON line on stdout")
    out.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
    out.add_argument(
        "--resident", action=argparse.BooleanOptionalAction, default=None,
        help="keep all parts of the model in memory, or one after the other; as fits the machine if not said",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    if args.preview_every is not None and args.preview_every < 1:
        raise RequestError(f"--preview-every {args.preview_every}: give a number of steps from 1.")
    model, requests = read_requests(args)

    from .. import pipeline
    from .progress import Progress

    for request in requests:
        pipeline.refuse_early(model, **request)
    with Progress(args.quiet) as progress:
        warm = pipeline.load(model, resident=args.resident, on_load=progress.loading, on_download=progress.say)
        _make(warm, requests, args, progress)


def _make(warm: "Pipeline", requests: Sequence[dict[str, Any]], args: argparse.Namespace, progress: Any) -> None:
    """All requests' pictures in one stream: a prompt is encoded once, a stage is loaded once."""
    jobs = [job for request in requests for job in warm.jobs(**request)]
    paths = output_paths(args.output, jobs, warm.model.manifest.name)
    on_step = _with_previews(progress.step, jobs, paths, args.preview_every)
    for result, path in zip(warm.stream(jobs, on_step), paths, strict=True):
        progress.clear()
        result.save(path)
        for note in result.report.notes:
            progress.say(f"note: {note}")
        print(_json_line(result, path) if args.json else path, flush=True)


def _with_previews(
    show: "Callable[[StepEvent], None]", jobs: "Sequence[Job]", paths: Sequence[Path], every: int | None
) -> "Callable[[StepEvent], None]":
    """Shows each step, and writes every n-th step's picture beside the finished one's place."""
    from ..image import write_picture

    def on_step(event: "StepEvent") -> None:
        show(event)
        if every and event.step % every == 0 and event.step < event.steps:
            path = paths[event.picture]
            write_picture(event.preview(), path.with_name(f"{path.stem}.step{event.step:03}{path.suffix}"))

    return on_step


def _json_line(result: "Result", path: Path) -> str:
    return json.dumps({"path": str(path), **result.record, "report": result.report.as_dict()}, ensure_ascii=False)


def _seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        seeds = list(range(int(first), int(last) + 1)) if dash and first else [int(text)]
    except ValueError:
        seeds = []
    if not seeds or len(seeds) > 10_000:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a whole number nor a range such as 1-4")
    return seeds


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 1024x768") from None
    return width, height
