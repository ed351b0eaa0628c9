"""How far packed models' pictures are from full precision: our packing beside mx.quantize, on trained models.

    python benchmarks/quant_quality.py MODEL [MODEL …] [--pictures 8] [--steps N] [--schemes NAME …]

For every scheme: bits a weight in the denoiser, error of the first step's velocity (% of its size), PSNR of whole
pictures against full precision's (dB, mean over pictures of the mean squared error), brightness shift (of 255, mean of
the absolute shift a picture) and contrast (standard deviation against full precision's). Same seeds and prompts
everywhere, one process.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_imagegen import load
from mlx_imagegen.download import locate
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.loading import Changes, layers
from mlx_imagegen.manifest import find
from mlx_imagegen.pipeline import Pipeline, open_family
from mlx_imagegen.quantization.packing import pack
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.quantization.recipes import fitted, read_recipe

PROMPTS = (
    "a red circle above a blue square", "a small green triangle on a white background", "a large yellow star",
    "a blue circle left of a red star", "a purple square below a green circle",
    "an orange triangle on a black background",
    "a green star right of a yellow square", "a small red square",
)  # fmt: skip
LESSONS = (
    "a white circle on a black background", "a large green square left of a blue triangle", "a purple star",
    "a yellow triangle above a red star", "a small blue square on a red background", "an orange circle",
    "a red triangle right of a purple circle", "a green square below a yellow circle", "a large blue star",
    "a white triangle", "a small purple square above an orange star", "a black circle left of a green triangle",
)  # fmt: skip
Pack = Callable[[mx.array, Packing], dict[str, mx.array]]


@dataclass(frozen=True)
class Scheme:
    name: str
    recipe: Callable[[str, str, tuple[int, ...], int], Packing | None] | None
    pack: Pack | None


def by_mlx(weight: mx.array, packing: Packing) -> dict[str, mx.array]:
    """As everybody packs: mx.quantize on the bf16 weight."""
    parts = mx.quantize(weight.astype(mx.bfloat16), packing.group_size, packing.bits)
    return dict(zip(("weight", "scales", "biases"), parts, strict=True))


def uniform(bits: int, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
    """Every linear layer of the denoiser alike."""
    return fitted(Packing(bits, 64), shape) if component == "transformer" else None


def only_transformer(recipe: Any, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
    """The recipe's rows for the denoiser; text encoders stay as they are, so that the denoiser's errors stand alone."""
    return recipe.packing(component, path, shape, depth) if component == "transformer" else None


def schemes(family: str) -> list[Scheme]:
    out = [Scheme("full precision", None, None)]
    for bits in (8, 6, 4):
        alike = functools.partial(uniform, bits)
        mixed = functools.partial(only_transformer, read_recipe(f"q{bits}", family))
        rounded, searched = pack, functools.partial(pack, search=True)
        out += [
            Scheme(f"q{bits} uniform, mx.quantize", alike, by_mlx),
            Scheme(f"q{bits} uniform, rounded", alike, rounded),
        ]
        if bits < 8:
            out.append(Scheme(f"q{bits} uniform, searched", alike, searched))
        out.append(Scheme(f"q{bits} recipe, mx.quantize", mixed, by_mlx))
        out.append(Scheme(f"q{bits} recipe", mixed, searched if bits < 8 else rounded))
    return out


def opened(folder: Path, scheme: Scheme) -> Pipeline:
    model, files = locate(str(folder))
    family = open_family(model.manifest, files, Changes(recipe=scheme.recipe, pack=scheme.pack))
    return Pipeline(model, files, family, True)


def drawn(pipeline: Pipeline, count: int, asked: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures in 0..255, and each one's first velocity."""
    first: list[np.ndarray] = []
    velocity = pipeline.family.velocity

    def watched(x: mx.array, index: int, conditioning: Any) -> mx.array:
        v = velocity(x, index, conditioning)
        if index == 0:
            first.append(np.array(v.astype(mx.float32)))
        return v

    pipeline.family.velocity = watched  # type: ignore[method-assign]
    jobs = [job for n in range(count) for job in pipeline.jobs(PROMPTS[n % len(PROMPTS)], seed=100 + n, **asked)]
    return [np.asarray(result.image, np.float64) for result in pipeline.stream(jobs)], first


def calibrated(folder: Path, bits: int | str, scratch: Path) -> Path:
    """A copy of the model, packed by what other prompts than the measured ones showed."""
    family = find(str(folder)).manifest.family
    recipe = str(bits)
    if isinstance(bits, int):
        recipe = str(scratch / f"uniform{bits}.toml")
        rows = f'[[{family}]]\nmatch = "transformer/*"\nbits = {bits}\n'
        Path(recipe).write_text(f"bits = 16\nsearch = true\nkeep = ['vae']\n{rows}")
    return quantize(folder, scratch / f"calibrated-{bits}", quant=recipe, calibrate=LESSONS)


def bits_per_weight(pipeline: Pipeline) -> float:
    stored = count = 0
    for _, layer in layers(pipeline.family.components["transformer"].load()):
        if isinstance(layer, Linear):
            packing = layer.packing
            rows, columns = layer.weight.shape
            weights = rows * columns * 32 // packing.bits if packing else rows * columns
            stored += weights * (packing.bits_per_weight if packing else 16)
            count += weights
    return stored / count


def compare(folder: Path, count: int, asked: dict[str, Any], wanted: list[str]) -> None:
    print(f"\n{folder.name}: {count} pictures, {asked or 'its own settings'}")
    print(f"{'':28}{'bits':>6}{'velocity %':>12}{'PSNR dB':>9}{'shift':>7}{'contrast':>10}")
    reference: tuple[list[np.ndarray], list[np.ndarray]] | None = None
    for scheme in schemes(find(str(folder)).manifest.family):
        if reference and wanted and not any(word in scheme.name for word in wanted):
            continue
        pipeline = opened(folder, scheme)
        pictures, first = drawn(pipeline, count, asked)
        if reference is None:
            reference = pictures, first
            continue
        bits = bits_per_weight(pipeline)
        print(f"{scheme.name:28}{bits:6.2f}{row(pictures, first, *reference)}", flush=True)
    if reference and (not wanted or "calibrated" in wanted):
        compare_calibrated(folder, count, asked, reference)


def compare_calibrated(
    folder: Path, count: int, asked: dict[str, Any], reference: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, bits in (("q4 uniform, calibrated", 4), ("q4 recipe, calibrated", "q4")):
            made = calibrated(folder, bits, Path(scratch))
            pipeline = load(made)
            pictures, first = drawn(pipeline, count, asked)
            print(f"{name:28}{bits_per_weight(pipeline):6.2f}{row(pictures, first, *reference)}", flush=True)


def row(
    pictures: list[np.ndarray], first: list[np.ndarray], wanted: list[np.ndarray], wanted_first: list[np.ndarray]
) -> str:
    velocity = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(first, wanted_first, strict=True)))
    velocity /= np.sqrt(sum((b**2).sum() for b in wanted_first))
    error = np.mean([((a - b) ** 2).mean() for a, b in zip(pictures, wanted, strict=True)])
    psnr = 10 * np.log10(255**2 / error) if error else float("inf")
    shift = np.mean([abs(a.mean() - b.mean()) for a, b in zip(pictures, wanted, strict=True)])
    contrast = np.mean([a.std() for a in pictures]) / np.mean([b.std() for b in wanted])
    return f"{100 * velocity:12.3f}{psnr:9.2f}{shift:7.2f}{contrast:10.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="names or folders")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, help="side in pixels")
    parser.add_argument("--schemes", nargs="*", default=[], help="only those with one of these words in the name")
    args = parser.parse_args()
    asked: dict[str, Any] = {"steps": args.steps} if args.steps else {}
    if args.size:
        asked |= {"width": args.size, "height": args.size}
    for folder in args.models:
        compare(folder, args.pictures, asked, args.schemes)


if __name__ == "__main__":
    main()
