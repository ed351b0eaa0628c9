"""`quantize`: a smaller copy of a model, in a folder that loads alone."""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .flags import add_flag, as_path, sides, size
from .plan import headers
from .requests import read_jobs

if TYPE_CHECKING:
    from ..lora.merge import Wanted
    from ..quantization.conversion_plan import ConversionPlan


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a name (see `mlx-imagegen models`), a repository id, a folder or a file"
    )
    add_flag(parser, "comfy")
    recipe = parser.add_mutually_exclusive_group()
    recipe.add_argument("--bits", type=int, help="8, 6 or 4: the recipe q8, q6 or q4")
    recipe.add_argument("--quant", metavar="RECIPE", help="a recipe's name or .toml file (q6)")
    parser.add_argument(
        "-o", "--output", type=as_path, metavar="FOLDER", help="where the copy goes; must not be there yet"
    )
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge it first; may be repeated"
    )
    parser.add_argument("--lora-partial", action="store_true", help="allow LoRAs of which a part fits no module")
    parser.add_argument(
        "--calibrate", type=as_path, metavar="FILE",
        help="prompts to be drawn first for calibration, one a line; or jobs, one JSON object a line (references …)",
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
    from ..lora.merge import parse_lora
    from ..planning.plan import gigabytes
    from ..quantization.conversion_plan import plan_conversion
    from ..quantization.partial import MOST_WORKERS, check_place, partial_path, place_of
    from ..quantization.quantizer import SEARCH_COST, chosen_quant, is_written, write_conversion
    from .progress import Progress

    quant = chosen_quant(args.quant, args.bits)
    if args.workers is not None and not 1 <= args.workers <= MOST_WORKERS:
        raise RequestError(f"--workers {args.workers}: give a number from 1 to {MOST_WORKERS}.")
    if args.output is None and not args.plan:
        raise RequestError("-o FOLDER is missing: where the copy goes.")
    calibrate, loras = _calibration_items(args), [parse_lora(text) for text in args.lora]
    if args.plan:
        _print_plan(args, quant, calibrate, loras)
        return
    target = place_of(args.output)
    check_place(target)
    with Progress(args.quiet) as progress:
        plan = plan_conversion(
            args.model, quant, lora=loras, lora_partial=args.lora_partial, calibrate=calibrate,
            fold=args.fold, fold_size=args.fold_size, on_download=progress.say,
        )  # fmt: skip
        if is_written(plan, target):
            progress.say(f"{target} is complete already, made from the same files by the same recipe")
            print(target)
            return
        for note in plan.notes:
            progress.say(f"note: {note}")
        search = f"; this recipe looks for each group's best scale: up to {SEARCH_COST} times as long as rounding takes"
        progress.say(f"{gigabytes(plan.nbytes)} to write{search if plan.recipe.search else ''}")
        if plan.calibration_cost:
            progress.say(str(plan.calibration_cost))
        started = time.perf_counter()
        try:
            folder = write_conversion(
                plan, target, args.workers, progress.converting, progress.step, on_download=progress.say
            )
        except KeyboardInterrupt:
            if partial_path(target).is_dir():
                progress.say(f"what is finished stays in {partial_path(target)}; the same command goes on from there")
            raise
        progress.clear()
        progress.say(f"done in {time.perf_counter() - started:.0f} s")
        print(folder)


def _print_plan(
    args: argparse.Namespace, quant: str, calibrate: Sequence[Mapping[str, Any]], loras: "Sequence[Wanted]"
) -> None:
    from ..hub.manifest import Model
    from ..lora.merge import open_loras
    from ..quantization.conversion_plan import plan_from_folder

    opened = open_loras(loras)
    with headers(args.model) as (manifest, folder, note):
        found = Model(manifest, folder, args.model)
        plan = plan_from_folder(found, folder, quant, args.fold, args.fold_size, calibrate)
        plan = plan.with_loras(opened, args.lora_partial)
        print(f"{manifest.name}, {quant}{note}")
        print("\n".join([described(plan), *(f"note: {line}" for line in plan.merge.match_lines())]))


def _calibration_items(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pictures for --calibrate: flags for all of them, a line's own parameters over these."""
    shared = sides(args.size) | ({} if args.steps is None else {"steps": args.steps})
    if shared and args.calibrate is None:
        raise RequestError(
            "--size and --steps are of the pictures for --calibrate, and no prompts are given; add --calibrate FILE."
        )
    return [shared | job for job in read_jobs(args.calibrate, "--calibrate")] if args.calibrate else []


def described(plan: "ConversionPlan") -> str:
    """What each kind of tensor gets, and what it comes to."""
    from ..planning.plan import gigabytes
    from ..quantization.calibration_set import too_large
    from ..quantization.conversion_plan import memory_lines, table

    rows = [(name, form, f"{count}", gigabytes(size)) for name, form, count, size in table(plan)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{n:<{widths[0]}}  {f:<{widths[1]}}  {c:>{widths[2]}}  {s:>{widths[3]}}" for n, f, c, s in rows]
    for layout in plan.layouts:
        bits = f"{layout.bits_per_weight:.2f} bits a weight"
        lines.append(f"{layout.component}: {bits}, {gigabytes(layout.nbytes)} on disk")
    lines.append(f"in all: {gigabytes(plan.nbytes)} on disk")
    cost = plan.calibration_cost
    calibration = [str(cost), *filter(None, [too_large(plan.model.manifest, cost)])] if cost else []
    return "\n".join([*lines, "", *memory_lines(plan), *calibration, *(f"note: {note}" for note in plan.notes)])
