"""`plan`: what a run will take, before anything is read, started or downloaded."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingFileError, UnknownModelError
from .flags import add_flag
from .generate import size

if TYPE_CHECKING:
    from ..families.base import Family
    from ..hub.manifest import Manifest
    from ..planning.plan import Plan
    from ..request.job import Job


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a name (see `mlx-imagegen models`), a repository id, a folder or a file"
    )
    add_flag(parser, "comfy")
    parser.add_argument("--quant", metavar="RECIPE", help="as if packed while loading: q8, q6, q4 or a .toml file")
    parser.add_argument("--size", type=size, metavar="N|WxH", help="of the picture; the model's own if not given")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--references", type=Path, nargs="+", metavar="FILE", help="pictures to attend to; only their sizes matter"
    )
    parser.add_argument("--chip", help="m1 … m5-max: a Mac's numbers, and the least seconds the steps can take")


def run(args: argparse.Namespace) -> None:
    from ..families import open_family
    from ..loading.weights import WeightTransforms
    from ..packing.recipes import read_recipe
    from ..planning.plan import chip_named, describe, plan
    from ..request.job import usual_job

    if args.chip:
        chip_named(args.chip)  # refused before anything is opened
    asked: dict[str, Any] = dict(zip(("width", "height"), args.size, strict=True)) if args.size else {}
    asked |= {"references": args.references} if args.references else {}
    with headers(args.model) as (manifest, folder, note):
        recipe = read_recipe(args.quant, manifest.family) if args.quant else None
        family = open_family(manifest, folder, recipe.applied_to(WeightTransforms()) if recipe else WeightTransforms())
        job = usual_job(manifest, family.size_multiple, steps=args.steps, **asked)
        made = plan(family, job.settings, True if args.chip else None, job.prompt)
        settings, count = job.settings, len(job.prompt.references)
        references = f", {count} reference picture{'s' if count > 1 else ''}" if count else ""
        print(f"{manifest.name}, {settings.width}x{settings.height}, {settings.steps} steps{references}{note}")
        print("\n".join(describe(made, args.chip)))
        if recipe:
            print(_copy(family, folder, args.quant))
        if not args.chip:
            print(_here(made, family, job, manifest))


@contextmanager
def headers(model: str) -> "Iterator[tuple[Manifest, Path, str]]":
    """The model's manifest, a folder with its headers, and where that is from. Nothing is downloaded."""
    from ..hub.download import local_folder
    from ..hub.recognition import find, recognize
    from ..hub.snapshots import cache_folder, cached
    from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder

    try:
        found = find(model)
    except UnknownModelError:
        folder = cached(cache_folder(), model, "main")
        if folder is None:
            raise
        yield recognize(folder), folder, ""
        return
    here = found.folder or local_folder(found.manifest)
    if here:
        yield found.manifest, here, ""
    elif has_tensor_shapes(found.manifest):
        with shape_only_folder(found.manifest) as folder:
            yield found.manifest, folder, " (by its published shapes; its files are not here)"
    else:
        raise MissingFileError(
            f"{model} is not here, its shapes are not known, and a plan downloads nothing; give a folder that holds it."
        )


def _copy(family: "Family[Any]", folder: Path, quant: str) -> str:
    from ..packing.recipes import read_recipe
    from ..planning.plan import gigabytes
    from ..quantization.layout import layouts

    size = sum(layout.nbytes for layout in layouts(family, folder, read_recipe(quant, family.name)))
    return f"disk: the full model, packed while it is loaded; a copy packed by `quantize` would be {gigabytes(size)}"


def _here(made: "Plan", family: "Family[Any]", job: "Job", manifest: "Manifest") -> str:
    """How it goes on the machine at hand."""
    from ..planning.fitting import refusal, residency

    refused = refusal(made, family, job, manifest)
    if refused:
        return refused
    chosen = residency([made], None)
    how = "everything stays in memory" if chosen.resident else "one stage at a time is in memory"
    return f"here {how}: {chosen.reason}"
