"""`download MODEL`: a model's files, or a network's, into the cache before they are needed; those there are kept."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError

if TYPE_CHECKING:
    from ..hub.manifest import Manifest
    from .progress import Progress


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="*", help="a name (see `mlx-imagegen models`, and --networks there) or a repository id"
    )
    parser.add_argument("--model", dest="models", nargs="+", default=[], help="the same, as other commands take it")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def run(args: argparse.Namespace) -> None:
    from ..hub.download import identify
    from ..hub.networks import network_alone
    from .progress import Progress

    names = [*args.model, *args.models]
    if not names:
        raise RequestError("give the model to download: mlx-imagegen download MODEL; `mlx-imagegen models` lists them.")
    with Progress(args.quiet) as progress:
        models = [
            network_alone(name) or identify(name) for name in names
        ]  # a name misspelt is refused before the first download
        for model in models:
            folder = model.folder or _fetched(model.manifest, progress)
            if model.folder:
                progress.say(f"{model.requested_as} is here; there is nothing to download")
            print(folder, flush=True)


def _fetched(manifest: "Manifest", progress: "Progress") -> Path:
    """The folder with the model's files; its own LoRA is downloaded as well."""
    from ..hub.download import fetch
    from ..lora.merge import own_loras

    downloads: list[str] = []

    def say(line: str) -> None:
        downloads.append(line)
        progress.say(line)

    folder = fetch(manifest, say)
    own_loras(manifest, say)
    progress.say(f"{manifest.name} is {'complete' if downloads else 'here already, and complete'}")
    return folder
