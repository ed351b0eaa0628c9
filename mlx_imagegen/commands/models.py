"""`models`: what can be named with --model, and next to one; what was downloaded, and the removal of downloads."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import RequestError
from ..hub.abilities import NETWORK_KINDS, parameter_of
from ..hub.manifest import Manifest, manifests
from .confirm import confirm
from .flags import add_flag

GB = 1e9


def flags(parser: argparse.ArgumentParser) -> None:
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--names", action="store_true", help="print the names alone")
    style.add_argument("--json", action="store_true", help="print everything the manifests say, as JSON")
    style.add_argument("--cached", action="store_true", help="what was downloaded, and the room that it takes")
    style.add_argument("--remove", metavar="MODEL", help="delete this model's downloaded files, after a question")
    parser.add_argument(
        "--networks",
        action="store_true",
        help="what runs next to a model: control networks, IP-Adapters, Redux, prompt upsamplers",
    )
    parser.add_argument("--yes", action="store_true", help="with --remove: do not ask")
    add_flag(parser, "comfy")


def run(args: argparse.Namespace) -> None:
    if args.yes and not args.remove:
        raise RequestError("--yes answers --remove's question; there is none without --remove MODEL.")
    if args.networks and (args.cached or args.remove):
        raise RequestError("--networks goes with --names and --json alone.")
    if args.cached:
        _print_cached()
    elif args.remove:
        _remove(args.remove, args.yes)
    else:
        _print_models(args)


def _print_models(args: argparse.Namespace) -> None:
    kinds = NETWORK_KINDS if args.networks else ("model",)
    known = [manifest for kind in kinds for manifest in manifests(kind).values()]
    if args.names:
        print("\n".join(manifest.name for manifest in known))
    elif args.json:
        print(json.dumps([dataclasses.asdict(manifest) for manifest in known], indent=2))
    elif args.networks:
        _print_table(
            [("NAME", "GIVEN AS", "TO", "DOWNLOAD", "HERE", "REPOSITORY", "LICENCE"), *map(_network_row, known)]
        )
        print(
            "TO: those of its models whose TAKES, in `mlx-imagegen models`, says so\n"
            "by hand: download the repository yourself, and give its folder in the name's place",
            file=sys.stderr,
        )
    else:
        rows = [("NAME", "STEPS", "SIZE", "DOWNLOAD", "HERE", "TAKES", "LICENCE"), *map(_row, known)]
        _print_table(rows)
        print(
            "TAKES: the parameters by which pictures are given, next to the prompt; ! is needed\n"
            "mlx-imagegen models --networks: what control, ip_adapter, redux and upsample can name",
            file=sys.stderr,
        )
        _print_files()


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_cached() -> None:
    from ..hub.downloaded import downloaded
    from ..hub.snapshots import cache_folder

    rows = downloaded()
    if not rows:
        print(f"no model is in {cache_folder()}; mlx-imagegen download MODEL gets one")
        return
    cells = [
        (row.repo, f"{row.nbytes / GB:.1f} GB", "yes" if row.is_complete else "no", ", ".join(row.models) or "-")
        for row in rows
    ]
    _print_table([("REPOSITORY", "SIZE", "COMPLETE", "MODELS"), *cells])
    print(f"{sum(row.nbytes for row in rows) / GB:.1f} GB in {cache_folder()}")


def _remove(model: str, sure: bool) -> None:
    from ..hub.downloaded import find_downloaded, remove

    row = find_downloaded(model)
    needed = f", which {', '.join(row.models)} need{'s' if len(row.models) == 1 else ''}" if row.models else ""
    what = f"{row.repo} ({row.nbytes / GB:.1f} GB in {row.storage}){needed}"
    if not sure and not confirm(f"Remove {what}?"):
        raise RequestError(f"nothing was removed: {what}; add --yes to remove it without a question.")
    remove(row)
    print(f"removed {row.repo}: {row.nbytes / GB:.1f} GB")


def _print_files() -> None:
    """The diffusion models of the ComfyUI folder that is set."""
    from ..hub.comfy import MODELS, chosen_folder

    folder = chosen_folder()
    if folder is None:
        return
    print(f"\nin {folder.models}:")
    rows = [(path.relative_to(folder.models).as_posix(), *_file_cells(path)) for path in folder.files(MODELS)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]]).rstrip())


def _file_cells(path: Path) -> tuple[str, str, str]:
    """Size, nearest manifest, and what is missing."""
    from ..errors import ImagegenError
    from ..hub.single_files import assemble

    size = f"{path.stat().st_size / GB:.1f} GB"
    try:
        assembly = assemble(path)
    except ImagegenError as error:
        return size, "-", str(error)
    lacking = f"needs {', '.join(assembly.missing)}" if assembly.missing else "ready"
    return size, assembly.manifest.name, lacking


def _takes(manifest: Manifest) -> str:
    """The parameters that give it pictures; those that it cannot do without are marked."""
    from ..hub.abilities import abilities

    needs = set(manifest.extras.get("needs", ()))
    needs |= {"image"} if "mask" in needs else set()
    needs |= {"references"} if manifest.extras.get("references_least") else set()
    return ",".join(name + "!" * (name in needs) for name in abilities(manifest)) or "-"


def _row(manifest: Manifest) -> tuple[str, ...]:
    from ..hub.download import local_folder

    defaults = manifest.defaults
    return (
        manifest.name,
        str(defaults.steps),
        f"{defaults.width}x{defaults.height}",
        "built in" if manifest.folder else f"{manifest.download_bytes / GB:.1f} GB",
        "yes" if local_folder(manifest) else "no",
        _takes(manifest),
        _licence(manifest),
    )


def _network_row(manifest: Manifest) -> tuple[str, ...]:
    from ..families import family_spec
    from ..hub.download import local_folder

    return (
        manifest.name,
        parameter_of(manifest),
        ", ".join(family_spec(family).title for family in manifest.families),
        f"{manifest.download_bytes / GB:.1f} GB" + ("" if manifest.revision else ", by hand"),
        "yes" if local_folder(manifest) else "no",
        manifest.repo or "-",
        _licence(manifest),
    )


def _licence(manifest: Manifest) -> str:
    return manifest.licence + (", gated" if manifest.gated else "")
