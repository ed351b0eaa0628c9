"""`models`: what can be named with --model."""

import argparse
import dataclasses
import json

from ..hub.manifest import Manifest, manifests

GB = 1e9


def flags(parser: argparse.ArgumentParser) -> None:
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--names", action="store_true", help="print the names alone")
    style.add_argument("--json", action="store_true", help="print everything the manifests say, as JSON")


def run(args: argparse.Namespace) -> None:
    known = manifests().values()
    if args.names:
        print("\n".join(manifest.name for manifest in known))
    elif args.json:
        print(json.dumps([dataclasses.asdict(manifest) for manifest in known], indent=2))
    else:
        rows = [("NAME", "STEPS", "SIZE", "DOWNLOAD", "HERE", "LICENCE"), *map(_row, known)]
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(manifest: Manifest) -> tuple[str, ...]:
    from ..hub.download import local_folder

    defaults = manifest.defaults
    return (
        manifest.name,
        str(defaults.steps),
        f"{defaults.width}x{defaults.height}",
        "built in" if manifest.folder else f"{manifest.download_bytes / GB:.1f} GB",
        "yes" if local_folder(manifest) else "no",
        manifest.licence + (", gated" if manifest.gated else ""),
    )
