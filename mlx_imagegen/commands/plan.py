"""`plan`: what a run will take, before anything is read, started or downloaded."""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MissingFileError, RequestError, UnknownModelError
from .flags import add_flag, as_path, sides, size

if TYPE_CHECKING:
    from ..families.base import Family
    from ..hub.manifest import Manifest
    from ..planning.chips import Chip
    from ..planning.plan import Plan
    from ..planning.recommend import Start
    from ..request.job import Job

ONLY_CLOSED = "only with every other program closed"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="a name (see `mlx-imagegen models`), a repository id, a folder or a file; without it: what to begin with",
    )
    add_flag(parser, "comfy")
    parser.add_argument("--quant", metavar="RECIPE", help="as if packed while loading: q8, q6, q4 or a .toml file")
    parser.add_argument("--size", type=size, metavar="N|WxH", help="of the picture; the model's own if not given")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--references", type=as_path, nargs="+", metavar="FILE", help="pictures to attend to; only their sizes matter"
    )
    parser.add_argument(
        "--control", nargs="+", metavar="NETWORK", help="control networks that run next to it, by name or folder"
    )
    add_flag(parser, "redux")
    add_flag(parser, "ip_adapter")
    add_flag(parser, "upsample")
    parser.add_argument("--chip", help="m1 … m5-max: a Mac's numbers, and the seconds that the steps take on it")
    parser.add_argument(
        "--memory", type=float, nargs="+", metavar="GB", help="of that Mac (this machine's), or of each of the hosts"
    )
    parser.add_argument("--hosts", type=int, metavar="N", help="how the work could be shared out over so many Macs")
    parser.add_argument("--all", action="store_true", help="every model, or every quant of the model")


def run(args: argparse.Namespace) -> None:
    check_flags(args.hosts, args.memory or [], args.model)
    machine = _machine(args)  # a chip that is not known is refused before anything is opened
    if args.model is not None:
        plan_model(args, machine)
    else:
        plan_machine(args, machine)


def check_flags(hosts: int | None, memories: Sequence[float], model: str | None) -> None:
    """Raises for numbers that cannot be, and for flags that do not go together."""
    for memory in memories:
        if not 0 < memory < math.inf:
            raise RequestError(f"--memory {memory:g}: give a Mac's memory in GB, such as 16.")
    count = len(memories)
    if hosts is None and count > 1:
        raise RequestError(f"--memory has {count} numbers for one machine; give --hosts {count} too.")
    if hosts is not None and hosts < 2:
        raise RequestError(f"--hosts {hosts}: give 2 or more.")
    if hosts is not None and model is None:
        raise RequestError("--hosts needs a model to share out; give --model.")
    if hosts is not None and count not in (0, 1, hosts):
        raise RequestError(f"--memory has {count} numbers for {hosts} hosts; give one for each, or one for all.")


def plan_machine(args: argparse.Namespace, machine: "Machine") -> None:
    """What to begin with, and the models in it by every quant."""
    from ..planning.recommend import CHIP, CHIP_NAME, recommend, starts

    found = recommend(machine.usable_bytes, machine.chip, machine.gpu)
    rows = starts(machine.chip, machine.gpu)
    shown = [each for each in rows if args.all or (found and each.model in found.models)]
    print("\n".join([*machine.answer(rows), "", _table(shown, machine)]))
    if machine.chip is CHIP:
        print(f"seconds: of an {CHIP_NAME}; --chip names another")
    if not args.all:
        print("all models: mlx-imagegen plan --all")


def plan_model(args: argparse.Namespace, machine: "Machine") -> None:
    from ..families import open_family
    from ..hub.record import record_of
    from ..loading.weights import WeightTransforms
    from ..machine import GIB, working_set_of
    from ..packing.recipes import read_recipe, recipe_of
    from ..planning.hosts import describe_sharing
    from ..planning.measurements import estimate
    from ..planning.plan import describe, gigabytes, plan
    from ..planning.recommend import starts_of
    from ..quantization.layout import layouts
    from ..request.job import usual_job

    args.quant = recipe_of(args.quant)
    given = ("references", "redux", "ip_adapter")
    asked: dict[str, Any] = {name: value for name in given if (value := getattr(args, name))}
    with headers(args.model) as (manifest, folder, note):
        recipe = read_recipe(args.quant, manifest.family) if args.quant else None
        transforms = recipe.applied_to(WeightTransforms()) if recipe else WeightTransforms()
        family = open_family(manifest, folder, transforms)
        job = usual_job(manifest, family.size_multiple, steps=args.steps, **sides(args.size), **asked)
        packed_by = args.quant or record_of(folder).get("recipe")  # also what runs next to the model
        _select_networks(family, manifest, args.control or (), job, packed_by)
        made = plan(family, job.settings, True if args.chip or args.memory else None, job.prompt)
        if not recipe:
            download = manifest.download_bytes if note else 0
            rows = list(starts_of(family, job, args.model, download, machine.chip, machine.gpu))
            table = ["", _table(rows, machine)] if args.all else []
            print("\n".join([*machine.answer(rows), *table, ""]))
        settings, count = job.settings, len(job.prompt.references)
        references = f", {count} reference picture{'s' if count > 1 else ''}" if count else ""
        print(f"{manifest.name}, {settings.width}x{settings.height}, {settings.steps} steps{references}{note}")
        print("\n".join(describe(made, args.chip)))
        if machine.chip_name and (found := estimate(machine.chip_name, manifest.name, args.quant)):
            print(found.describe(machine.chip_name, made.seconds(machine.chip)))
        if args.upsample:
            print(_upsampler(args, manifest, packed_by, count))
        if recipe:
            size = gigabytes(sum(layout.nbytes for layout in layouts(family, folder, recipe)))
            print(f"disk: the full model, packed while it is loaded; a copy packed by `quantize` would be {size}")
        if args.hosts:
            each = [working_set_of(int(memory * GIB)) for memory in args.memory or ()] or [machine.usable_bytes]
            memories = each * args.hosts if len(each) == 1 else each
            lines = describe_sharing(family, job.settings, memories, machine.chip, machine.gpu, job.prompt)
            print("\n".join(["", *lines]))
        elif args.memory:
            print(machine.how(made))
        elif not args.chip:
            print(_here(made, family, job, manifest))


def _select_networks(
    family: "Family[Any]", manifest: "Manifest", names: "Sequence[str]", job: "Job", quant: str | None
) -> None:
    """The control networks, and the adapters of the job's pictures, by their files or their published shapes."""
    from ..hub.networks import network_headers
    from ..loading.weights import WeightTransforms
    from ..packing.recipes import read_recipe

    plain = WeightTransforms()
    transforms = read_recipe(quant, family.name).applied_to(plain) if quant else plain
    controls, adapters = {}, {}
    for name in names:
        with network_headers(name, manifest) as place:
            controls[name] = family.open_control(name, place, transforms)
    for source in {image.adapter for image in job.prompt.images}:
        with network_headers(source.name, manifest, source.parameter) as place:
            adapters[source] = family.open_adapter(source, place)
    family.select_controls(controls)
    family.select_adapters(adapters)


class Machine(NamedTuple):
    """The one at hand, or a Mac with the chip and the memory asked for."""

    name: str
    usable_bytes: int
    most_bytes: int  # with every other program closed
    chip: "Chip"
    chip_name: str | None  # of a Mac's
    gpu: bool  # as on a Mac, or as on the CPU (plan.py)

    def answer(self, rows: "Sequence[Start]") -> list[str]:
        from ..planning.recommend import choose

        for most, how in ((self.usable_bytes, ""), (self.most_bytes, f", {ONLY_CLOSED}")):
            if found := choose(rows, most):
                return [f"{self.name}{how}:", *(f"  {line}" for line in found.lines())]
        return [f"{self.name}: nothing fits; a smaller picture may"]

    def verdict(self, peak_bytes: int) -> str:
        if peak_bytes <= self.usable_bytes:
            return "fits"
        return ONLY_CLOSED if peak_bytes <= self.most_bytes else "does not fit"

    def how(self, made: "Plan") -> str:
        fits = made.peak_bytes <= self.usable_bytes
        how = f", {_how(made.resident_peak_bytes <= self.usable_bytes)}" if fits else ""
        return f"{self.name}: {self.verdict(made.peak_bytes)}{how}"


def _machine(args: argparse.Namespace) -> Machine:
    from ..machine import GB, GIB, machine, memory_limit, working_set_of
    from ..planning.chips import chip_named, chip_of
    from ..planning.recommend import CHIP
    from ..precision import on_gpu

    name = args.chip or chip_of(machine()["device"])
    chip = chip_named(name) if name else CHIP
    if args.memory:
        memory = args.memory[0]
        usable = working_set_of(int(memory * GIB))
        mac = f"a Mac with {memory:g} GB, of which {usable / GB:.1f} for the GPU"
        return Machine(mac, usable, usable, chip, name, True)
    limit = memory_limit()
    return Machine(str(limit), limit.usable_bytes, limit.most_bytes, chip, name, on_gpu() or bool(args.chip))


def _table(rows: "Sequence[Start]", machine: Machine) -> str:
    from ..machine import GB
    from ..measuring.tables import aligned, short

    ordered = sorted(rows, key=lambda each: (each.peak_bytes > machine.most_bytes, each.seconds))
    cells = [
        [
            each.model, each.quant or "none", short(each.peak_bytes / GB), short(each.download_bytes / GB),
            str(each.steps), short(each.seconds), machine.verdict(each.peak_bytes),
        ]
        for each in ordered
    ]  # fmt: skip
    return aligned(("model", "quant", "peak GB", "download GB", "steps", "seconds at least", ""), cells)


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
            f"{model} is not here, its shapes are not known, and nothing is downloaded for this; download it first, or "
            "give a folder that holds it."
        )


def _upsampler(args: argparse.Namespace, manifest: "Manifest", quant: str | None, references: int) -> str:
    """What runs before all stages of the model, and is gone when they begin."""
    import mlx.core as mx

    from ..planning.plan import gigabytes
    from ..request.options import upsampler
    from ..upsampling.api import headers_of
    from ..upsampling.upsampler import MOST_TOKENS, most_question_tokens

    name = upsampler(manifest, args.upsample)
    assert name is not None
    length = most_question_tokens(references)
    dtype = mx.bfloat16 if args.chip or args.memory else None  # a Mac's
    need = headers_of(name, quant, manifest).peak_bytes(length, MOST_TOKENS, dtype=dtype)
    return f"upsample: {gigabytes(need)} before the others, with {length} tokens asked and up to {MOST_TOKENS} written"


def _here(made: "Plan", family: "Family[Any]", job: "Job", manifest: "Manifest") -> str:
    """How it goes on the machine at hand."""
    from ..planning.fitting import refusal, residency

    if refused := refusal(made, family, job, manifest):
        return refused
    chosen = residency([made], None)
    return f"here {_how(chosen.resident)}: {chosen.reason}"


def _how(resident: bool) -> str:
    return "everything stays in memory" if resident else "one stage at a time is in memory"
