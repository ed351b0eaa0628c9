"""`generate`: requests in, pictures out. Flags are the table of parameters, and what only a command line needs."""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..launched import launch
from ..request.parameters import DEFAULT_MODEL, PARAMETERS
from .flags import Group, add_aliases, add_flags, as_path, size
from .output_paths import DEFAULT_PATTERN, FIELDS, existing, new_folder, output_paths, skipped, step_path, what_to_save
from .recorded_model import read_record_and_requests, revision_notes
from .requests import naming_line

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request.job import Job
    from ..result import StepEvent
    from .progress import Progress

PARALLEL = ("auto", "pictures", "branches", "layers")
GROUPS = {
    "what": ("what", None),
    "how": ("how", "What is not given, the model's manifest says."),
    "pictures": ("pictures to start from", None),
    "sampling": ("sampling", "For HiDream-O1; Qwen-Image takes a shift."),
    "weights": ("weights", None),
}


def flags(parser: argparse.ArgumentParser) -> None:
    groups = {name: parser.add_argument_group(*texts) for name, texts in GROUPS.items()}
    _add_requests(groups["what"])
    for name, group in groups.items():
        add_flags(group, [row for row in PARAMETERS if row.group == name and row.name != "prompt"])
    groups["how"].add_argument("--size", type=size, metavar="N|WxH", help="width and height at once")
    _add_output(parser.add_argument_group("output"))
    ranks = parser.add_argument_group("several Macs", "With mlx.launch, which starts one rank on each.")
    ranks.add_argument(
        "--parallel", choices=PARALLEL,
        help="what each rank computes: pictures; one branch of guidance of each picture; or its part of each layer "
        "and no more of the model (auto: what is fastest and fits)",
    )  # fmt: skip
    ranks.add_argument("--output-on-each-host", action="store_true", help="leave pictures on the host that drew them")
    add_aliases(parser)


def _add_requests(group: Group) -> None:
    """A prompt may stand alone, without its flag."""
    group.add_argument("prompt", nargs="?", help="what the picture should show, in quotes; - reads standard input")
    group.add_argument("--prompt", dest="prompt_text", metavar="TEXT", help="the same, as a flag")
    group.add_argument(
        "--prompt-file", type=as_path, metavar="FILE", help="prompts, one a line; or jobs, one JSON object a line"
    )
    group.add_argument(
        "--from", type=as_path, dest="replay", metavar="PNG", help="make this picture again; flags override"
    )
    group.add_argument(
        "--yes", action="store_true", help="with --from: download what the picture's record names without a question"
    )


def _add_output(group: Group) -> None:
    fields = ", ".join(f"{{{name}}}" for name in FIELDS)
    group.add_argument(
        "-o", "--output", default=DEFAULT_PATTERN, metavar="PATTERN",
        help=f"a file's name, or a folder, which is made if it ends in /; {fields} are filled in ({DEFAULT_PATTERN})",
    )  # fmt: skip
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace pictures that are there already")
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="draw only the pictures that are not there yet: goes on with a batch",
    )
    group.add_argument("--preview-every", type=int, metavar="N", help="write the unfinished picture every N steps")
    group.add_argument("--no-metadata", action="store_true", help="write the pixels alone, without how they were made")
    group.add_argument(
        "--no-report", action="store_true", help="record no seconds and no machine: a seed gives the same bytes again"
    )
    group.add_argument(
        "--record-paths", action="store_true", help="record where local models and LoRAs are, not only their names"
    )
    group.add_argument("--json", action="store_true", help="print each picture's record and report as a line of JSON")
    group.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def run(args: argparse.Namespace) -> None:
    if args.preview_every is not None and args.preview_every < 1:
        raise RequestError(f"--preview-every {args.preview_every}: give a number of steps from 1.")
    if launched := launch():
        from .generate_on_ranks import run_on_ranks

        run_on_ranks(args, launched)
        return
    if args.parallel or args.output_on_each_host:
        raise RequestError("--parallel and --output-on-each-host are for several ranks; start them with mlx.launch.")
    with new_folder(args.output):
        _generate(args)


def _generate(args: argparse.Namespace) -> None:
    record, opening, requests = read_record_and_requests(args)

    from .. import pipeline
    from ..hub.record import revision_of
    from ..preflight import manifest_before_opening, resolve_before_opening
    from .progress import Progress

    manifest = manifest_before_opening(opening.get("model", DEFAULT_MODEL))
    resolved: list[list[Job]] = []  # by request, before the model is opened
    paths: list[Path] = []
    if manifest:
        for request in requests:
            with naming_line(request):
                resolved.append(resolve_before_opening(manifest, opening.get("lora"), **request))
        paths = output_paths(args.output, list(chain(*resolved)), manifest)
    present = existing(paths, args.overwrite, args.skip_existing)
    with Progress(args.quiet) as progress:
        if paths and len(present) == len(paths):
            progress.say(skipped(present))
            return
        opened = pipeline.load(**opening, on_load=progress.loading, on_download=progress.say)
        jobs = []
        for place, request in enumerate(requests):
            with naming_line(request):
                jobs += opened.check(resolved[place]) if resolved else opened.jobs(**request)
        if not resolved:
            paths = output_paths(args.output, jobs, opened.model.manifest)
            present = existing(paths, args.overwrite, args.skip_existing)
        progress.note(*revision_notes(args.replay, record, opened.model.requested_as, revision_of(opened.folder)))
        if present:
            progress.say(skipped(present))
        wanted = [(job, path) for job, path in zip(jobs, paths, strict=True) if path not in present]
        if wanted:
            _make(opened, wanted, args, progress)


def _make(
    opened: "Pipeline", wanted: "Sequence[tuple[Job, Path]]", args: argparse.Namespace, progress: "Progress"
) -> None:
    """All requests' pictures in one stream: a prompt is encoded once, a stage is loaded once."""
    from ..image import write_picture

    jobs, paths = [job for job, _ in wanted], [path for _, path in wanted]

    def on_step(event: "StepEvent") -> None:
        progress.step(event)
        if path := step_path(paths[event.picture], event, args.preview_every):
            write_picture(event.preview(), path)

    progress.note(*(note for job in jobs for note in job.notes))  # now: the work may take hours
    opened.on_token = progress.writing
    for result, path in zip(opened.stream(jobs, on_step), paths, strict=True):
        progress.clear()
        result.save(path, **what_to_save(args))
        progress.note(*result.report.notes)
        print(result.line(path, args.json), flush=True)
        progress.say(f"seed {result.seed}, {result.report.total_seconds:.1f} s")
