"""`plan`: what a run will take, before anything is read or begun."""

import argparse

from .generate import _size


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a name (see `mlx-imagegen models`), a repository id or a folder"
    )
    parser.add_argument("--quant", metavar="RECIPE", help="as if packed while loading: q8, q6, q4 or a .toml file")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the picture; the model's own if not given")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--chip", help="m1 … m4-max: a Mac's numbers, and the least seconds the steps can take")


def run(args: argparse.Namespace) -> None:
    from ..job import usual_job
    from ..pipeline import load
    from ..plan import chip_named, describe, plan

    if args.chip:
        chip_named(args.chip)  # refused before anything is opened
    size = dict(zip(("width", "height"), args.size, strict=True)) if args.size else {}
    pipeline = load(args.model, quant=args.quant)
    job = usual_job(pipeline.model.manifest, pipeline.family.size_multiple, steps=args.steps, **size)
    made = plan(pipeline.family, job.settings, True if args.chip else None, job.prompt.references)
    settings, changing = job.settings, ", changing one picture" if job.prompt.references else ""
    print(f"{pipeline.model.manifest.name}, {settings.width}x{settings.height}, {settings.steps} steps{changing}")
    print("\n".join(describe(made, args.chip)))
