"""`models`: what can be named with --model."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..hub.manifest import Manifest, manifests
from .flags import add_flag

GB = 1e9


def flags(parser: argparse.ArgumentParser) -> None:
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--names", action="store_true", help="print the names alone")
    style.add_argument("--json", action="store_true", help="print everything the manifests say, as JSON")
    add_flag(parser, "comfy")


def run(args: argparse.Namespace) -> None:
    known = manifests().values()
    if args.names:
        print("\n".join(manifest.name for manifest in known))
    elif args.json:
        print(json.dumps([dataclasses.asdict(manifest) for manifest in known], indent=2))
    else:
        rows = [("NAME", "STEPS", "SIZE", "DOWNLOAD", "HERE", "TAKES", "LICENCE"), *map(_row, known)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        print("TAKES: the parameters by which pictures are given, next to the prompt; ! is needed", file=sys.stderr)
        _print_files()


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
        manifest.licence + (", gated" if manifest.gated else ""),
    )
