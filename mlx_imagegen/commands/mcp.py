"""`mcp`: an agent's tools for pictures, over MCP on standard input and output."""

import argparse
from pathlib import Path

from ..errors import ImagegenError, MissingFileError
from ..paths import expanded
from .flags import as_path
from .serve import add_model_flags, idle_seconds

FOLDER = Path("~/Pictures/mlx-imagegen")


def flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser.add_argument_group("models"))
    parser.add_argument(
        "-o", "--output", type=as_path, default=FOLDER, metavar="FOLDER", help=f"for pictures ({FOLDER})"
    )
    parser.add_argument(
        "--images", type=as_path, action="append", default=[], metavar="FOLDER",
        help="pictures in it may be edited, next to those in the output folder; may be repeated",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise ImagegenError("mcp needs the package mcp; install it: pip install 'mlx-imagegen[mcp]'.") from error

    from ..serving.catalogue import Catalogue, check_quant, is_here
    from ..serving.mcp_server import run as serve
    from ..serving.service import Options, Service
    from ..serving.tools import Tools

    catalogue = Catalogue(args.model, args.models_dir, args.loras_dir)
    if not catalogue.default.is_folder and not is_here(catalogue.default.manifest):
        raise MissingFileError(
            f"{args.model} is not on this machine, and hosts do not wait for a download; make one picture with "
            f"mlx-imagegen generate --model {args.model} first."
        )
    service = Service(catalogue, Options(check_quant(args.quant), idle_seconds=idle_seconds(args.idle_unload)))
    service.start(open_model=False)
    serve(Tools(service, expanded(args.output), tuple(args.images)))
