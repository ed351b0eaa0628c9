"""`bench`: what quants and sizes cost and change, on this machine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from .flags import as_path, number_or_text, size
from .requests import readable

if TYPE_CHECKING:
    from ..measuring.bench import Asked, Row

# Any will do for cost; for the quality columns it should be one that the demo models can draw.
PROMPT = "a small red circle left of a large blue square on a white background"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", required=True, help="names (see `mlx-imagegen models`) or folders")
    quants = ["none", "q8", "q6", "q4"]
    parser.add_argument(
        "--quant", nargs="+", default=quants, metavar="RECIPE", help=f"none is as stored ({' '.join(quants)})"
    )
    parser.add_argument("--size", nargs="+", type=size, default=[None], metavar="N|WxH", help="the model's own")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--guidance", type=float, metavar="X")
    parser.add_argument(
        "--cache", type=number_or_text, nargs="+", default=[], metavar="fast|X", help="step caches, each next to none"
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=[None],
        metavar="DTYPE",
        help="FLUX.1: how its transformer computes (as usual)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same for all (1)")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT")
    parser.add_argument("--references", type=as_path, nargs="+", metavar="FILE", help="pictures, for models that edit")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="measured runs of each (3)")
    parser.add_argument("--warm-up", type=int, default=1, metavar="N", help="runs before those (1)")
    parser.add_argument(
        "--share", type=as_path, metavar="FILE", help="also write chip, versions, seconds and memory to it"
    )
    parser.add_argument("--plot", action="store_true", help="also draw plot.png")
    parser.add_argument(
        "-o", "--output", type=as_path, default=Path("bench"), metavar="FOLDER", help="for tables and pictures (bench)"
    )
    parser.add_argument("--json", action="store_true", help="print bench.json instead of the tables")


def run(args: argparse.Namespace) -> None:
    from ..hub.download import notify_stderr
    from ..image import check_writable
    from ..measuring.bench import Asked, bench, write
    from ..measuring.tables import new_folder

    given = {name: value for name in ("steps", "guidance", "seed") if (value := getattr(args, name)) is not None}
    given |= {"references": readable(args.references)} if args.references else {}
    asked = Asked(
        args.model, args.quant, args.size, args.prompt, given, args.repeat, args.warm_up, args.cache, args.precision
    )
    rows: list[Row] = []
    with new_folder(args.output) as folder:
        if args.share:
            check_writable(args.share)
        try:
            for row in bench(asked, folder, notify_stderr):
                rows.append(row)
                if row.picture:  # a killed run, or a full disk, costs a row and not hours
                    write(rows, asked, folder, plot=False)
        finally:  # after Ctrl-C, too: what was measured took its time
            if any(row.picture for row in rows):
                _report(rows, asked, folder, args)
    if all(row.reason for row in rows):
        raise RequestError(f"nothing could be measured. {rows[0].name}: {rows[0].reason}")


def _report(rows: "list[Row]", asked: "Asked", folder: Path, args: argparse.Namespace) -> None:
    from ..measuring.bench import compare_pictures, in_terminal, write
    from ..measuring.environment import environment
    from ..measuring.share import write_shared

    compare_pictures(rows, folder)
    try:
        if not args.json:
            print(in_terminal(rows), flush=True)  # first, so that it is shown even if it can no longer be written
    finally:  # and written even if nobody reads it to the end: `mlx-imagegen bench … | head`
        write(rows, asked, folder, args.plot)
        if args.share:
            write_shared(rows, environment(), args.share)
    if args.json:
        print((folder / "bench.json").read_text(encoding="utf-8").rstrip())
