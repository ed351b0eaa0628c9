"""`quantize`: a smaller copy of a model, in a folder that loads alone."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .flags import add_flag
from .generate import size
from .plan import headers
from .requests import read_jobs

if TYPE_CHECKING:
    from ..quantization.quantizer import Draft


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a name (see `mlx-imagegen models`), a repository id, a folder or a file"
    )
    add_flag(parser, "comfy")
    recipe = parser.add_mutually_exclusive_group()
    recipe.add_argument("--bits", type=int, help="8, 6 or 4: the recipe q8, q6 or q4")
    recipe.add_argument("--quant", metavar="RECIPE", help="a recipe's name or .toml file (q6)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where the copy goes; must not be there yet"
    )
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge it first; may be repeated"
    )
    parser.add_argument("--lora-partial", action="store_true", help="allow LoRAs of which a part fits no module")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE",
        help="prompts to be drawn first and learnt from, one a line; or jobs, one JSON object a line (references …)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=size, metavar="N|WxH", help="of the pictures for --calibrate, where a line says nothing else"
    )
    parser.add_argument("--steps", type=int, help="of the pictures for --calibrate, where a line says nothing else")
    parser.add_argument(
        "--fold", type=int, metavar="STEPS", help="tables for that many steps in the place of modulation weights"
    )
    parser.add_argument(
        "--fold-size", type=size, metavar="N|WxH", help="the size for --fold, where the schedule depends on it"
    )
    parser.add_argument("--workers", type=int, help="threads (one a core)")
    parser.add_argument("--plan", action="store_true", help="only print what each tensor would get, and the sizes")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> None:
    from ..hub.manifest import Model
    from ..lora.merge import open_loras, parse_lora
    from ..planning.plan import gigabytes
    from ..quantization.partial import check_place, partial_path, place_of
    from ..quantization.quantizer import draft, merged, plan_from_folder, quant_of_bits, quantize
    from .progress import Progress

    quant = quant_of_bits(args.bits) if args.bits is not None else args.quant or "q6"
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers}: give a number from 1.")
    if args.output is None and not args.plan:
        raise RequestError("-o FOLDER is missing: where the copy goes.")
    lessons, loras = _lessons(args), [parse_lora(text) for text in args.lora]
    if args.plan:
        opened = open_loras(loras)
        with headers(args.model) as (manifest, folder, note):
            found = Model(manifest, folder, args.model)
            made = plan_from_folder(found, folder, quant, args.fold, args.fold_size, lessons)
            matches = [f"note: {line}" for line in merged(made, opened, args.lora_partial).found()]
            print(f"{manifest.name}, {quant}{note}")
            print("\n".join([described(made), *matches]))
        return
    target = place_of(args.output)
    check_place(target)
    with Progress(args.quiet) as progress:
        opened = open_loras(loras, progress.say)
        made = draft(args.model, quant, progress.say, args.fold, args.fold_size, lessons, opened, args.lora_partial)
        for note in made.notes:
            progress.say(f"note: {note}")
        progress.say(f"{gigabytes(made.nbytes)} to write{_pace(made)}")
        if made.learning:
            progress.say(str(made.learning))
        started = time.perf_counter()
        try:
            folder = quantize(
                args.model, args.output, quant=quant, lora=loras, lora_partial=args.lora_partial, calibrate=lessons,
                fold=args.fold, fold_size=args.fold_size, workers=args.workers,
                on_progress=progress.converting, on_step=progress.step, on_download=progress.say,
            )  # fmt: skip
        except KeyboardInterrupt:
            if partial_path(target).is_dir():
                progress.say(f"what is finished stays in {partial_path(target)}; the same command goes on from there")
            raise
        progress.clear()
        progress.say(f"done in {time.perf_counter() - started:.0f} s")
        print(folder)


def _lessons(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pictures for --calibrate: flags for all of them, a line's own parameters over these."""
    asked = {"steps": args.steps, **dict(zip(("width", "height"), args.size or (None, None), strict=True))}
    shared = {name: value for name, value in asked.items() if value is not None}
    if shared and args.calibrate is None:
        raise RequestError(
            "--size and --steps are of the pictures for --calibrate, and no prompts are given; add --calibrate FILE."
        )
    return [shared | job for job in read_jobs(args.calibrate, "--calibrate")] if args.calibrate else []


def described(made: "Draft") -> str:
    """What each kind of tensor gets, and what it comes to."""
    from ..planning.plan import gigabytes
    from ..quantization.calibration_set import too_large
    from ..quantization.quantizer import expected, table

    rows = [(name, form, f"{count}", gigabytes(size)) for name, form, count, size in table(made)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{n:<{widths[0]}}  {f:<{widths[1]}}  {c:>{widths[2]}}  {s:>{widths[3]}}" for n, f, c, s in rows]
    for layout in made.layouts:
        lines.append(
            f"{layout.component}: {layout.bits_per_weight:.2f} bits a weight, {gigabytes(layout.nbytes)} on disk"
        )
    lines.append(f"in all: {gigabytes(made.nbytes)} on disk")
    takes = made.learning
    learnt = [str(takes), *filter(None, [too_large(made.model.manifest, takes)])] if takes else []
    return "\n".join([*lines, "", *expected(made), *learnt, *(f"note: {note}" for note in made.notes)])


def _pace(made: "Draft") -> str:
    from ..quantization.quantizer import SEARCH_COST

    if not made.recipe.search:
        return ""
    return f"; this recipe looks for each group's best scale, which takes up to {SEARCH_COST} times as long as rounding"
