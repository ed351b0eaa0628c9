"""`generate`: requests in, pictures out. Flags are named like the API's parameters."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .output_paths import DEFAULT_PATTERN, FIELDS, output_paths
from .requests import read_requests

Group = argparse._ArgumentGroup
if TYPE_CHECKING:
    from ..pipeline import Pipeline, Result, StepEvent
    from ..request.job import Job


def flags(parser: argparse.ArgumentParser) -> None:
    _what(parser.add_argument_group("what"))
    _how(parser.add_argument_group("how", "What is not given, the model's manifest says."))
    _pictures(parser.add_argument_group("pictures to start from"))
    _sampling(parser.add_argument_group("sampling", "For HiDream-O1; Qwen-Image takes a shift."))
    _weights(parser.add_argument_group("weights"))
    _output(parser.add_argument_group("output"))


def _what(group: Group) -> None:
    group.add_argument("prompt", nargs="?", help="what the picture should show, in quotes; - reads standard input")
    group.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="prompts, one a line; or jobs, one JSON object a line"
    )
    group.add_argument(
        "--from", type=Path, dest="replay", metavar="PNG", help="make this picture again; flags override"
    )
    group.add_argument("--model", help="a name (see `mlx-imagegen models`), a repository id or a folder")
    group.add_argument(
        "--negative-prompt", metavar="TEXT", help="what it should not show; needs --guidance or --true-cfg above 1"
    )


def _how(group: Group) -> None:
    group.add_argument(
        "--seed", type=_seeds, action="extend", metavar="N|A-B", help="repeat it or give a range for more pictures"
    )
    group.add_argument("--count", type=int, metavar="N", help="this many pictures, with seeds from the first upwards")
    group.add_argument("--steps", type=int, metavar="N")
    group.add_argument("--width", type=int, metavar="PIXELS")
    group.add_argument("--height", type=int, metavar="PIXELS")
    group.add_argument("--size", type=size, metavar="N|WxH", help="width and height at once")
    group.add_argument("--aspect", metavar="W:H", help="a shape, such as 16:9, in the model's usual number of pixels")
    group.add_argument("--guidance", type=float, metavar="X", help="how closely to follow the prompt")
    group.add_argument(
        "--true-cfg", type=float, metavar="X", help="FLUX.1: the scale between prompt and negative prompt"
    )
    group.add_argument("--max-sequence-length", type=int, metavar="TOKENS", help="how much of the prompt is read")


def _pictures(group: Group) -> None:
    group.add_argument("--image", type=Path, metavar="FILE", help="change this picture")
    group.add_argument("--strength", type=float, metavar="X", help="by how much: above 0 (keep it) to 1 (replace it)")
    group.add_argument(
        "--references", type=Path, nargs="+", metavar="FILE", help="pictures the prompt speaks of, for editing"
    )
    group.add_argument(
        "--layout", type=_json, metavar="JSON", help="where references go: [[x1, x2, y1, y2], …] from 0 to 1"
    )
    group.add_argument("--keep-original-aspect", action="store_true", default=None, help="the one reference's shape")


def _sampling(group: Group) -> None:
    group.add_argument(
        "--noise", type=Path, metavar="NPY", help="the starting noise, as diffusers takes it: [1, 16, H/8, W/8]"
    )
    group.add_argument("--step-noise", type=Path, nargs="+", metavar="NPY", help="the noise of each step, a file each")
    group.add_argument("--sampler", metavar="NAME")
    group.add_argument("--shift", type=float, metavar="X")
    group.add_argument("--timesteps", type=float, nargs="+", metavar="T", help="falling, below 1000, one a step")
    group.add_argument(
        "--noise-scale", type=float, nargs="+", metavar="X", help="one, or the first and the last step's"
    )
    group.add_argument("--noise-clip", type=float, metavar="X", help="in standard deviations; 0 is none")
    group.add_argument("--blend-seams", type=_radius, metavar="N|adaptive", help="soften the borders between patches")


def _weights(group: Group) -> None:
    group.add_argument(
        "--quant", metavar="RECIPE", help="pack the weights while they are loaded: q8, q6, q4 or a recipe's file"
    )
    group.add_argument(
        "--lora", type=_lora, action="append", metavar="FILE[:SCALE]", help="merge this LoRA; may be repeated"
    )
    group.add_argument(
        "--lora-partial", action="store_true", default=None, help="allow LoRAs of which a part fits no module"
    )
    group.add_argument(
        "--resident", action=argparse.BooleanOptionalAction, default=None,
        help="keep all parts of the model in memory, or one after the other; as fits the machine if not said",
    )  # fmt: skip


def _output(group: Group) -> None:
    fields = ", ".join(f"{{{name}}}" for name in FIELDS)
    group.add_argument(
        "-o", "--output", default=DEFAULT_PATTERN, metavar="PATTERN",
        help=f"a file's name or a folder; {fields} are filled in ({DEFAULT_PATTERN})",
    )  # fmt: skip
    group.add_argument("--preview-every", type=int, metavar="N", help="write the unfinished picture every N steps")
    group.add_argument("--json", action="store_true", help="print each picture's record and report as a line of JSON")
    group.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def run(args: argparse.Namespace) -> None:
    if args.preview_every is not None and args.preview_every < 1:
        raise RequestError(f"--preview-every {args.preview_every}: give a number of steps from 1.")
    opening, requests = read_requests(args)

    from .. import pipeline
    from .progress import Progress

    model = opening.pop("model", pipeline.DEFAULT_MODEL)
    early: list[Job] = []
    for request in requests:
        manifest, jobs = pipeline.refuse_early(model, **request)
        early += jobs
    if early:
        output_paths(args.output, early, manifest)
    with Progress(args.quiet) as progress:
        warm = pipeline.load(model, **opening, on_load=progress.loading, on_download=progress.say)
        _make(warm, requests, args, progress)


def _make(warm: "Pipeline", requests: Sequence[dict[str, Any]], args: argparse.Namespace, progress: Any) -> None:
    """All requests' pictures in one stream: a prompt is encoded once, a stage is loaded once."""
    jobs = [job for request in requests for job in warm.jobs(**request)]
    paths = output_paths(args.output, jobs, warm.model.manifest)
    progress.note(*(note for job in jobs for note in job.notes))  # now: the work may take hours
    on_step = _with_previews(progress.step, jobs, paths, args.preview_every)
    for result, path in zip(warm.stream(jobs, on_step), paths, strict=True):
        progress.clear()
        result.save(path)
        progress.note(*result.report.notes)
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
        low, high = (int(first), int(last)) if dash and first else (int(text), int(text))
    except ValueError:
        low, high = 1, 0
    if not 0 <= high - low < 10_000:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a whole number nor a range such as 1-4, of 10000 at most"
        )
    return list(range(low, high + 1))


def size(text: str) -> tuple[int, int]:
    """Width and height: 1024 or 1024x768."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 1024 or 1024x768")
    return int(sides[0]), int(sides[-1])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error})") from None


def _radius(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _lora(text: str) -> Any:
    from ..lora.merge import parse_lora

    return parse_lora(text)
