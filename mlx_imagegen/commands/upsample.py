"""`upsample`: the long caption of a short request, on standard output."""

import argparse
from typing import Any

from ..documents import TEXT_LIMIT_BYTES, parse_json, read_file
from ..errors import RequestError
from ..paths import expanded
from .flags import add_flag, as_path


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", help="what the picture should show, or what is to change in the references; in quotes"
    )
    parser.add_argument(
        "--references", type=as_path, nargs="+", default=[], metavar="FILE", help="pictures that an edit begins with"
    )
    parser.add_argument(
        "--boxes", type=as_path, metavar="JSON",
        help='a file of places: [{"id": …, "desc": …, "bbox": [y_min, x_min, y_max, x_max]}, …] from 0 to 1',
    )  # fmt: skip
    parser.add_argument("--model", help="the upsampler's name or folder (flux3-pup)")
    add_flag(parser, "quant")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of the caption, at most (3584)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def run(args: argparse.Namespace) -> None:
    from ..upsampling.api import upsample
    from .progress import Progress

    boxes = None if args.boxes is None else _boxes(args)
    with Progress(args.quiet) as progress:
        caption = upsample(
            args.prompt,
            references=args.references,
            boxes=boxes,
            model=args.model,
            quant=args.quant,
            max_tokens=args.max_tokens,
            on_token=progress.writing,
            on_load=progress.loading,
            on_download=progress.say,
        )
    print(caption, flush=True)


def _boxes(args: argparse.Namespace) -> Any:
    path = expanded(args.boxes)
    text = read_file(path, TEXT_LIMIT_BYTES, RequestError, "give a JSON file")
    return parse_json(text.decode("utf-8-sig", "replace"), str(path), RequestError, "correct the file")
