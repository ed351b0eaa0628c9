"""`serve`: a warm model behind HTTP, and a page to use it from."""

import argparse
import os
import secrets
from typing import TYPE_CHECKING

from ..errors import ImagegenError, RequestError
from ..request.parameters import DEFAULT_MODEL
from .flags import Group, as_path

if TYPE_CHECKING:
    from ..serving.service import Options

PORT = 8642
TOKEN_VARIABLE = "MLX_IMAGEGEN_TOKEN"
EXAMPLE = "a large red circle on a white background"
LIMITS = ("pixels", "count", "steps")


def flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser.add_argument_group("models"))
    access = parser.add_argument_group("access")
    access.add_argument("--host", default="127.0.0.1", help="this machine alone (127.0.0.1); others need --token")
    access.add_argument("--port", type=int, default=PORT, help=f"0 takes any that is free ({PORT})")
    access.add_argument(
        "--token", nargs="?", const="", metavar="SECRET",
        help=f"what clients must send; without SECRET one is drawn and printed; ${TOKEN_VARIABLE} works as well",
    )  # fmt: skip
    access.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this machine"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-queue", type=int, default=32, metavar="N", help="requests that may wait (32)")
    for name in LIMITS:
        limits.add_argument(f"--max-{name}", type=int, metavar="N", help=f"{name} that a request may ask for")
    parser.add_argument("--log-prompts", action="store_true", help="prompts stand in the log; they do not otherwise")


def add_model_flags(group: Group) -> None:
    """Those of `mcp` too."""
    group.add_argument("--model", default=DEFAULT_MODEL, help=f"the model of requests that name none ({DEFAULT_MODEL})")
    group.add_argument("--quant", metavar="RECIPE", help="pack weights while they are loaded: q8, q6 or q4")
    group.add_argument("--models-dir", type=as_path, metavar="FOLDER", help="its folders can be asked for by name")
    group.add_argument("--loras-dir", type=as_path, metavar="FOLDER", help="its LoRAs can be asked for by name")
    group.add_argument(
        "--idle-unload", type=float, default=15, metavar="MINUTES", help="then the model leaves memory; 0 is never (15)"
    )


def idle_seconds(minutes: float) -> float | None:
    """Of --idle-unload."""
    if minutes < 0:
        raise RequestError(f"--idle-unload {minutes:g}: give minutes, or 0 for never.")
    return minutes * 60 or None


def run(args: argparse.Namespace) -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImagegenError(f"serve needs {error.name}; install it: pip install 'mlx-imagegen[serve]'.") from error

    from ..serving.catalogue import Catalogue
    from ..serving.safety import Access
    from ..serving.server import address_of, bind
    from ..serving.server import run as serve
    from ..serving.service import Service

    token = _token(args)
    options = _options(args)
    bound = bind(args.host, args.port)
    service = Service(Catalogue(args.model, args.models_dir, args.loras_dir), options)
    service.start()
    print("\n".join(welcome(address_of(bound), service.catalogue.default.name, token)), flush=True)
    serve(service, Access.of(token, [args.host, *args.allow_host]), bound)


def welcome(address: str, model: str, token: str | None) -> list[str]:
    """What to open, and a request to copy."""
    authorization = f" -H 'Authorization: Bearer {token}'" if token else ""
    return [
        f"{model} at {address} (OpenAI's API at {address}/v1, A1111's at {address})",
        f"page: {address}/{f'#token={token}' if token else ''}",
        f'curl {address}/v1/images/generations{authorization} -d \'{{"prompt": "{EXAMPLE}"}}\'',
        "Ctrl-C stops it.",
    ]


def _token(args: argparse.Namespace) -> str | None:
    from ..serving.safety import SHORTEST_TOKEN, is_loopback

    token = args.token if args.token is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        if not is_loopback(args.host):
            raise RequestError(
                f"--host {args.host} lets other machines in, and no token is asked of them; add --token, which draws "
                "one, or leave --host out to serve this machine alone."
            )
        return None
    if token and len(token) < SHORTEST_TOKEN:
        raise RequestError(
            f"--token: {len(token)} characters can be guessed; give {SHORTEST_TOKEN} or more, or --token alone, which "
            "draws one."
        )
    return token or secrets.token_urlsafe(24)


def _options(args: argparse.Namespace) -> "Options":
    from ..serving.catalogue import check_quant
    from ..serving.requests import Limits
    from ..serving.service import Options

    given = {name: value for name in LIMITS if (value := getattr(args, f"max_{name}")) is not None}
    for name, value in {"max-queue": args.max_queue, **{f"max-{name}": value for name, value in given.items()}}.items():
        if value < 1:
            raise RequestError(f"--{name} {value}: give a number from 1.")
    idle = idle_seconds(args.idle_unload)
    return Options(check_quant(args.quant), args.max_queue, idle, args.log_prompts, Limits(**given))
