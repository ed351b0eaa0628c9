"""`compare`: pictures of several models side by side."""

import argparse
from pathlib import Path

from ..launched import launch
from .flags import as_path, size
from .requests import same_for_all


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
    parser.add_argument("--precision", metavar="DTYPE", help="FLUX.1: how its transformer computes (as usual)")
    parser.add_argument("--references", type=as_path, nargs="+", metavar="FILE", help="pictures, for models that edit")
    parser.add_argument(
        "-o", "--output", type=as_path, default=Path("compare"), metavar="FOLDER", help="for sheet and tables (compare)"
    )


def run(args: argparse.Namespace) -> None:
    if launched := launch():
        from .compare_on_ranks import run_on_ranks

        run_on_ranks(args, launched)
        return
    from ..hub.download import notify_stderr
    from ..measuring.compare import compare, read_columns, read_lines
    from ..measuring.compare_tables import in_terminal, write
    from ..measuring.tables import new_folder

    parameters, lines = same_for_all(args), read_lines(args.prompts)
    with new_folder(args.output) as folder:
        sheet = compare(read_columns(args.models, args.precision), lines, parameters, folder, notify_stderr)
        notify_stderr(in_terminal(sheet))
        print(write(sheet, parameters, folder, notify_stderr))
