"""`compare`: pictures of several models side by side."""

import argparse
from pathlib import Path
from typing import Any

from .flags import as_path
from .generate import size
from .requests import readable


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL[@QUANT]", help="names or folders; @q6 packs while loading"
    )
    parser.add_argument(
        "--prompts", type=as_path, required=True, metavar="FILE", help="as examples/prompts.toml, or a line a prompt"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same for all (1)")
    parser.add_argument("--steps", type=int, metavar="N", help="each model's own if not said")
    parser.add_argument("--size", type=size, metavar="N|WxH", help="each model's own if not said")
    parser.add_argument(
        "--precision", metavar="DTYPE", help="FLUX.1: how its transformer computes; as usual if not said"
    )
    parser.add_argument("--references", type=as_path, nargs="+", metavar="FILE", help="pictures, for models that edit")
    parser.add_argument(
        "-o", "--output", type=as_path, default=Path("compare"), metavar="FOLDER", help="for sheet and tables (compare)"
    )


def run(args: argparse.Namespace) -> None:
    from ..hub.download import notify_stderr
    from ..measuring.compare import compare, in_terminal, read_columns, read_lines, write
    from ..measuring.tables import new_folder

    parameters: dict[str, Any] = {"seed": args.seed}
    if args.steps is not None:
        parameters["steps"] = args.steps
    if args.size:
        parameters |= {"width": args.size[0], "height": args.size[1]}
    if args.references:
        parameters["references"] = readable(args.references)
    lines = read_lines(args.prompts)
    with new_folder(args.output) as folder:
        sheet = compare(read_columns(args.models, args.precision), lines, parameters, folder, notify_stderr)
        notify_stderr(in_terminal(sheet))
        shown = parameters | ({"precision": args.precision} if args.precision else {})
        print(write(sheet, shown, folder, notify_stderr))
