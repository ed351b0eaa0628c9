"""`doctor`: what this machine is, whether its kernels multiply correctly, and which models fit it.

Out: facts as names and values, `Check`s of the packed products against an independent reference, and `Fit`s,
fastest first. Some chips and versions of MLX had quantized products that were wrong for many rows or for odd widths,
without any error: a picture shows it only as noise.
Must not know: the command line.
"""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import ImagegenError
from ..families import family_specs, open_family
from ..hub.download import HuggingFace, local_folder
from ..hub.manifest import Model, manifests
from ..hub.recognition import find
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..kernels import cache_file
from ..layers.linear import DENSE, GROUP_SIZES, PACKED, Packing, packed_matmul, unpacked
from ..limits import bound_cache
from ..loading.weights import WeightTransforms
from ..machine import GB, machine, memory_limit
from ..packing.recipes import read_recipe, recipe_names
from ..planning.plan import Chip, plan
from ..precision import compute_dtype, on_gpu
from ..request.job import usual_job
from .sheet import unwritable
from .worker import AS_STORED

# The worst row's error, as a part of that row. Rounding explains this much; a wrong kernel is off by 1.
LIMITS = {mx.bfloat16: 0.03, mx.float16: 0.01, mx.float32: 0.005}
MANY = 32_768  # rows after which kernels of some versions went wrong
FASTEST_MATMUL = (2048, 3072, 3072)  # what the speed of products is measured on: FLUX.1's and Qwen-Image's width
COPY_BYTES = 256 * 2**20
OPENED_BY = ("references", "sizes")  # what families read in a manifest of their own keys


@dataclass(frozen=True)
class Check:
    """One product, by one kernel: [tokens, columns] times a packed [rows, columns]."""

    packing: Packing
    kernel: str
    tokens: int
    rows: int
    columns: int
    error: float  # of the worst row
    limit: float

    @property
    def right(self) -> bool:
        return self.error <= self.limit  # a NaN is not

    def __str__(self) -> str:
        pack = f"{self.packing.bits} bits in groups of {self.packing.group_size} ({self.packing.mode})"
        shape = f"[{self.tokens}, {self.columns}] x [{self.rows}, {self.columns}]"
        return f"{self.kernel}, {pack}, {shape}: off by {self.error:.2g}"


@dataclass(frozen=True)
class Fit:
    """A model by a quant on this machine, at the model's usual size."""

    model: str
    quant: str
    reason: str | None = None  # why nothing else is known
    peak_bytes: int = 0  # one stage at a time
    all_bytes: int = 0  # all stages at once
    seconds: float = 0.0  # of the loop, at the speed measured here
    download_bytes: int = 0  # what has to be fetched first

    @property
    def verdict(self) -> str:
        if self.reason:
            return self.reason
        limit = memory_limit()
        if self.peak_bytes > limit.most_bytes:
            return f"does not fit: {self.peak_bytes / GB:.1f} GB at the peak"
        fetch = f"; {self.download_bytes / GB:.1f} GB to download" if self.download_bytes else ""
        if self.peak_bytes > limit.usable_bytes:
            return f"only with every other program closed{fetch}"
        once = self.all_bytes <= limit.usable_bytes
        return f"fits, {'all stages at once' if once else 'one stage at a time'}{fetch}"


def facts() -> dict[str, str]:
    """What there is to know about the machine and the installation."""
    versions = {name: _version(name) for name in ("mlx-vlm", "numpy", "pillow")}
    limit, cache = memory_limit(), Path(HuggingFace().cache)
    room = shutil.disk_usage(_existing(cache)).free
    return {
        **machine(),
        "chip": _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else platform.platform(),
        "memory": f"{limit.physical_bytes / GB:.1f} GB, of which {limit.usable_bytes / GB:.1f} GB are counted on",
        "GPU": _gpu(),
        "numbers": f"{str(compute_dtype()).removeprefix('mlx.core.')} (precision.py says why)",
        "MLX's cache of freed buffers": f"up to {_cache_limit() / GB:.2f} GB",
        "measured kernels": f"{cache_file()}{'' if cache_file().is_file() else ', none yet'}",
        "downloads": f"{cache}: {_folder_bytes(cache) / GB:.1f} GB, {room / GB:.0f} GB free there",
        "letters on sheets": "Latin only: no Chinese or Japanese font was found" if unwritable(["字"]) else "all",
        **versions,
    }


def warnings(known: dict[str, str]) -> list[str]:
    """What should be changed about the machine."""
    found = []
    if "reference" in known["blas"]:
        found.append("MLX multiplies with its reference BLAS, about 80 times slower: install libopenblas0-pthread.")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        found.append("this Python runs in translation or on an Intel Mac; MLX needs an arm64 Python on Apple Silicon.")
    return found


def self_test(packings: Sequence[Packing] | None = None) -> Iterator[Check]:
    """Every packing in use, both kernels, on the shapes that matter."""
    for packing in packings_in_use() if packings is None else packings:
        for tokens, rows, columns in shapes(packing):
            yield from check(packing, tokens, rows, columns)


def shapes(packing: Packing) -> list[tuple[int, int, int]]:
    """(tokens, rows, columns): one token, few, a picture; above 32,768 on either side; an odd number of groups."""
    odd = 33 * packing.group_size  # with groups of 32 not a multiple of 64
    # The CPU has one packed kernel for all shapes, and a slow one.
    picture, width = (4096, 3072) if on_gpu() else (96, 768)
    few = [(1, width, 3072), (picture, width, 3072), (7, 640, odd), (77, 320, odd)]
    return [*few, (MANY + 9, 64, 2 * odd // 11), (3, MANY + 72, 128)]


def check(packing: Packing, tokens: int, rows: int, columns: int) -> Iterator[Check]:
    columns = max(packing.group_size, columns // packing.group_size * packing.group_size)
    dtype = compute_dtype()
    x = mx.array(_dice()[: tokens * columns].reshape(tokens, columns)).astype(dtype)
    packed, dense = _weight(packing, rows, columns, dtype)
    expected = np.array(x.astype(mx.float32)) @ dense.T  # NumPy's product, of the CPU's unpacking: neither kernel's
    for kernel in (PACKED, DENSE):
        out = packed_matmul(x, packed["weight"], packed["scales"], packed.get("biases"), packing, kernel)
        error = _worst_row(np.array(out.astype(mx.float32)), expected)
        yield Check(packing, kernel, tokens, rows, columns, error, LIMITS[dtype])


@functools.cache
def _dice() -> np.ndarray:
    """Unit normals, drawn once: more than the largest of all matrices has."""
    return np.random.default_rng(0).standard_normal(2**24, np.float32)


@functools.lru_cache(maxsize=1)
def _weight(packing: Packing, rows: int, columns: int, dtype: mx.Dtype) -> tuple[dict[str, mx.array], np.ndarray]:
    """A packed matrix, and the numbers that it stands for as the CPU unpacks them."""
    backwards = np.ascontiguousarray(_dice()[-rows * columns :][::-1])  # other numbers than x's
    drawn = mx.array(backwards.reshape(rows, columns))
    with mx.stream(mx.cpu):
        parts = mx.quantize(drawn, packing.group_size, packing.bits, mode=packing.mode)
        packed = dict(zip(("weight", "scales", "biases"), parts, strict=False))
        if packing.mode == "affine":  # as files have them; the reference starts from the same 16 bits
            packed = {name: value.astype(dtype) if name != "weight" else value for name, value in packed.items()}
        mx.eval(packed)
        return packed, np.array(unpacked(packed, packing))


def packings_in_use() -> list[Packing]:
    """What the recipes can ask for, with the smaller groups they fall back to."""
    found: set[Packing] = set()
    for name in recipe_names():
        for spec in family_specs():
            wanted = {row.packing for row in read_recipe(name, spec.name).rows if row.packing}
            for packing in wanted:
                sizes = [size for size in GROUP_SIZES[packing.mode] if size <= packing.group_size]
                found |= {Packing(packing.bits, size, packing.mode) for size in sizes}
    return sorted(found, key=lambda packing: (packing.mode, packing.bits, packing.group_size))


def _worst_row(out: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(out - expected, axis=1)
    worst = difference / np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
    return float(worst.max()) if np.isfinite(worst).all() else float("nan")


def fits(models: Sequence[str] = ()) -> list[Fit]:
    """The models named, or all there are, by every quant; those that fit and are fastest first, then the rest."""
    chip, groups = measured_chip(), dict[str, list[Model]]()
    for model in map(find, dict.fromkeys(models) or manifests()):
        groups.setdefault(_opened_from(model), []).append(model)
    found = [fit for group in groups.values() for fit in _fits(group, chip)]
    most = memory_limit().most_bytes
    return sorted(found, key=lambda fit: (fit.reason is not None, fit.peak_bytes > most, fit.seconds))


def _opened_from(model: Model) -> str:
    """Equal where families open the same files: many manifests have one transformer."""
    manifest = model.manifest
    if folder := _folder(model):
        return f"{folder} {manifest.name}"
    return repr(
        (manifest.family, manifest.tensor_shapes, manifest.edits, [manifest.extras.get(key) for key in OPENED_BY])
    )


def _folder(model: Model) -> Path | None:
    return model.folder or local_folder(model.manifest)


def _fits(models: Sequence[Model], chip: Chip) -> Iterator[Fit]:
    """Of models with the same shapes; of those that are not here, the published shapes are known."""
    manifest, folder = models[0].manifest, _folder(models[0])
    if folder is None and not has_tensor_shapes(manifest):
        yield from (Fit(model.requested_as, AS_STORED, "not here, and its shapes are not known") for model in models)
        return
    with nullcontext(folder) if folder else shape_only_folder(manifest) as where:
        try:
            family = open_family(manifest, where, WeightTransforms())
        except ImagegenError as error:
            yield from (Fit(model.requested_as, AS_STORED, _line(error)) for model in models)
            return
        jobs = [usual_job(model.manifest, family.size_multiple) for model in models]
        for quant in (AS_STORED, *sorted(recipe_names(), reverse=True)):
            recipe = None if quant == AS_STORED else read_recipe(quant, manifest.family)
            try:
                if recipe and any(weights.stored for weights in family.weights.values()):
                    open_family(manifest, where, recipe.applied_to(WeightTransforms()))  # says why not
            except ImagegenError as error:
                yield from (Fit(model.requested_as, quant, _line(error)) for model in models)
                continue
            for model, job in zip(models, jobs, strict=True):
                made = plan(family, job.settings, on_gpu(), job.prompt, recipe=recipe)
                download = 0 if folder else model.manifest.download_bytes
                sizes = made.peak_bytes, made.resident_peak_bytes
                yield Fit(model.requested_as, quant, None, *sizes, made.seconds(chip), download)


def _line(error: ImagegenError) -> str:
    return " ".join(str(error).split())


def measured_chip() -> Chip:
    """How fast this machine multiplies and copies, in plan.py's terms: the best of three, at the working precision."""
    tokens, rows, columns = FASTEST_MATMUL
    tokens //= 1 if on_gpu() else 8
    x, weight = (mx.random.normal((count, columns)).astype(compute_dtype()) for count in (tokens, rows))
    many = mx.zeros((COPY_BYTES // 4,))
    mx.eval(x, weight, many)
    product = min(_seconds(lambda: x @ weight.T) for _ in range(3))
    copy = min(_seconds(lambda: many + 1) for _ in range(3))
    return Chip(2 * COPY_BYTES / copy / 1e9, 2 * tokens * rows * columns / product / 1e12)


def _seconds(work: Callable[[], mx.array]) -> float:
    started = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - started


def _gpu() -> str:
    if not on_gpu():
        return "none that MLX uses; it runs on the CPU"
    info = mx.device_info(mx.gpu)
    limit = float(info.get("max_recommended_working_set_size", 0)) / GB
    wired = _sysctl("iogpu.wired_limit_mb")
    asked = f"set to {wired} MB" if wired and wired != "0" else "the system's own"
    return f"{info.get('device_name')}: may hold {limit:.1f} GB (wired limit: {asked})"


def _cache_limit() -> int:
    before = mx.set_cache_limit(0)  # there is no other way to read it
    bound_cache()
    limit = mx.set_cache_limit(before)
    return limit


def _sysctl(name: str) -> str | None:
    if sys.platform != "darwin":
        return None
    ran = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True)
    return ran.stdout.strip() or None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _folder_bytes(folder: Path) -> int:
    """Each file once: the cache's snapshots are links to it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
