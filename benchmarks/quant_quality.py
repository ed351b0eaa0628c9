"""How far pictures of packed models are from full precision: our packing and mx.quantize, on trained models.

    python benchmarks/quant_quality.py MODEL [MODEL …] [--pictures 32] [--captions SEED] [--steps N] [--schemes NAME …]

A table in Markdown for every model, a row a scheme: bits a weight in the denoiser, and its MB in the loop; error of the
first step's velocity (% of its size), PSNR of whole pictures against full precision's (dB: mean and standard deviation
over the pictures; and pooled, that of the mean squared error of them all), what each picture gains over mx.quantize's
uniform packing of as many bits (dB, mean and standard error of the paired differences), GMSD, brightness shift (of 255:
mean over the pictures of its size), contrast (standard deviation against full precision's), and where the picture is
flat, the drift and the grain that was added (of 255). "uniform": every linear layer of the denoiser alike, as mlx packs
it, and mflux 0.24 but for Qwen-Image at 4 bits ("as mflux"). "recipe": quant/*.toml. Same prompts and seeds for all,
one process. The standard error is that of the choice of pictures: another rounding of the same weights moves a model
this small by up to 1 dB more.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import argparse
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.families import family_spec, open_family
from mlx_imagegen.families.base import Denoiser
from mlx_imagegen.hub.download import locate
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.loading.weights import WeightTransforms, layers
from mlx_imagegen.measuring.quality import compared
from mlx_imagegen.packing.affine import pack
from mlx_imagegen.packing.packer import Pack, Packer
from mlx_imagegen.packing.recipes import fitted, read_recipe
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.quantization.quantizer import quantize

BITS = (8, 6, 4)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star")
ENDS = {"img_in", "txt_in", "norm_out.linear", "proj_out"}
HEADER = (
    "packing", "bits", "MB", "velocity %", "PSNR dB", "pooled dB", "over mx.quantize", "GMSD", "shift", "contrast",
    "flat: drift, grain",
)  # fmt: skip
CALIBRATION = 12  # prompts to calibrate with; none of them is measured


@dataclass(frozen=True)
class Scheme:
    name: str
    recipe: Callable[[str, str, tuple[int, ...], int], Packing | None] | None
    pack: Pack | None


@dataclass(frozen=True)
class Drawn:
    pictures: np.ndarray  # [N, H, W, 3], 0..255
    first: np.ndarray  # [N, …]: each one's first velocity

    def velocity_percent(self, wanted: "Drawn") -> float:
        return 100 * float(np.sqrt(((self.first - wanted.first) ** 2).sum() / (wanted.first**2).sum()))

    def psnr(self, wanted: "Drawn") -> np.ndarray:
        """[N], dB; pictures that are the same to a tenth of a level count as that near."""
        error = ((self.pictures - wanted.pictures) ** 2).mean(axis=(1, 2, 3))
        return 10 * np.log10(255**2 / np.maximum(error, 0.01))

    def pooled_psnr(self, wanted: "Drawn") -> float:
        return 10 * float(np.log10(255**2 / max(((self.pictures - wanted.pictures) ** 2).mean(), 0.01)))

    def shift(self, wanted: "Drawn") -> float:
        return float(np.abs((self.pictures - wanted.pictures).mean(axis=(1, 2, 3))).mean())

    def distances(self, wanted: "Drawn") -> list[str]:
        """GMSD, drift and grain of flat areas, means over the pictures."""
        pairs = zip(self.pictures, wanted.pictures, strict=True)
        each = [compared(*(Image.fromarray(picture.astype(np.uint8)) for picture in pair)) for pair in pairs]
        flat = [one for one in each if one.flat_shift_levels is not None]
        drift = [np.mean([getattr(one, name) for one in flat]) for name in ("flat_shift_levels", "flat_grain_levels")]
        return [f"{np.mean([one.gmsd for one in each]):.4f}", f"{drift[0]:.2f}, {drift[1]:.2f}"]

    def contrast(self, wanted: "Drawn") -> float:
        return float(np.mean(self.pictures.std(axis=(1, 2, 3)) / wanted.pictures.std(axis=(1, 2, 3))))


def captions(count: int, seed: int) -> list[str]:
    """In the words that the demo models know."""
    dice = np.random.default_rng(seed)
    out: list[str] = []
    while len(out) < count:
        size, other = dice.choice(("small", "large"), 2)
        (colour, tint), (shape, form) = dice.choice(COLOURS, 2, replace=False), dice.choice(SHAPES, 2, replace=False)
        relation = dice.choice(("left of", "right of", "above", "below"))
        background = dice.choice(("white", "gray", "pink", "black"))
        out.append(f"a {size} {colour} {shape} {relation} a {other} {tint} {form} on a {background} background")
    return out


def by_mlx(weight: mx.array, packing: Packing, *, importance: np.ndarray | None = None) -> dict[str, mx.array]:
    """As everybody packs: mx.quantize on the bf16 weight."""
    parts = mx.quantize(weight.astype(mx.bfloat16), packing.group_size, packing.bits)
    return dict(zip(("weight", "scales", "biases"), parts, strict=True))


def uniform(bits: int, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
    """Every linear layer of the denoiser alike."""
    return fitted(Packing(bits, 64), shape) if component == "transformer" else None


def as_mflux(bits: int, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
    """Qwen-Image's transformer: 16 bits at both ends and for all modulation at 4 bits."""
    spared = path in ENDS or ".img_mod." in path or ".txt_mod." in path or path.startswith("time_text_embed.")
    return None if spared else uniform(bits, component, path, shape, depth)


def only_transformer(recipe: Any, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
    """The recipe's rows for the denoiser; text encoders stay as they are, so that the denoiser's errors stand alone."""
    return recipe.packing(component, path, shape, depth) if component == "transformer" else None


def schemes(family: str) -> list[Scheme]:
    """mx.quantize's uniform packing comes first of its bits: what the others gain is counted from there."""
    out = []
    for bits in BITS:
        alike = functools.partial(uniform, bits)
        mixed = functools.partial(only_transformer, read_recipe(f"q{bits}", family))
        ours = functools.partial(pack, search=bits < 8)
        out += [
            Scheme(f"q{bits} uniform, mx.quantize", alike, by_mlx),
            Scheme(f"q{bits} uniform", alike, ours),
            Scheme(f"q{bits} recipe", mixed, ours),
        ]
        if bits == 4:  # where rounding shows most
            out.insert(-1, Scheme(f"q{bits} recipe, mx.quantize", mixed, by_mlx))
            if family == "qwen_image":
                out.insert(-3, Scheme(f"q{bits} as mflux, mx.quantize", functools.partial(as_mflux, bits), by_mlx))
    return out


def opened(folder: Path, scheme: Scheme) -> Pipeline:
    model, files = locate(str(folder))
    digest = f"{scheme.name} {os.getpid()}"  # tables that are kept between runs must not be another scheme's
    norms = family_spec(model.manifest.family).norms
    steps = (Packer(scheme.pack, scheme.recipe, digest, norms),) if scheme.pack else ()
    family = open_family(model.manifest, files, WeightTransforms(steps))
    return Pipeline(model, files, family, True)


def drawn(pipeline: Pipeline, prompts: Sequence[str], asked: dict[str, Any]) -> Drawn:
    first: list[np.ndarray] = []
    velocity = Denoiser.velocity

    def watched(denoiser: Denoiser[Any], x: mx.array, index: int) -> mx.array:
        v = velocity(denoiser, x, index)
        if index == 0:
            first.append(np.array(v.astype(mx.float32)))
        return v

    jobs = [job for n, prompt in enumerate(prompts) for job in pipeline.jobs(prompt, seed=100 + n, **asked)]
    Denoiser.velocity = watched  # type: ignore[method-assign]
    try:
        pictures = [np.asarray(result.image, np.float64) for result in pipeline.stream(jobs)]
    finally:
        Denoiser.velocity = velocity  # type: ignore[method-assign]
    return Drawn(np.array(pictures), np.array(first))


def calibrated(folder: Path, bits: int | str, scratch: Path) -> Path:
    """A copy of the model, packed by what other prompts than the measured ones showed."""
    family = find(str(folder)).manifest.family
    recipe = str(bits)
    if isinstance(bits, int):
        recipe = str(scratch / f"uniform{bits}.toml")
        rows = f'[[{family}]]\nmatch = "transformer/*"\nbits = {bits}\n'
        Path(recipe).write_text(f"bits = 16\nsearch = true\nkeep = ['vae', 'text_encoder', 'text_encoder_2']\n{rows}")
    return quantize(folder, scratch / f"calibrated-{bits}", quant=recipe, calibrate=captions(CALIBRATION, 0))


def bits_per_weight(pipeline: Pipeline) -> float:
    """In the loop: what is read once before it does not count."""
    stored, count = 0.0, 0
    for _, layer in layers(pipeline.family.components["transformer"].load()):
        if isinstance(layer, Linear):
            packing = layer.packing
            rows, columns = layer.weight.shape
            weights = rows * columns * 32 // packing.bits if packing else rows * columns
            stored += weights * (packing.bits_per_weight if packing else 16)
            count += weights
    return stored / count


def compare(folder: Path, prompts: Sequence[str], asked: dict[str, Any], wanted: list[str]) -> None:
    print(f"\n`{folder.name}`, {len(prompts)} pictures, {asked or 'its own settings'}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "| --- " * len(HEADER) + "|")
    reference = drawn(opened(folder, Scheme("full precision", None, None)), prompts, asked)
    known: dict[str, np.ndarray] = {}  # q8 … -> PSNR of mx.quantize's uniform packing
    for scheme in schemes(find(str(folder)).manifest.family):
        if wanted and not any(word in scheme.name for word in wanted):
            continue
        report(scheme.name, opened(folder, scheme), reference, known, prompts, asked)
    if wanted and "calibrated" not in wanted:
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name, bits in (("q4 uniform, calibrated", 4), ("q4 recipe, calibrated", "q4")):
            report(name, load(calibrated(folder, bits, Path(scratch))), reference, known, prompts, asked)


def report(
    name: str,
    pipeline: Pipeline,
    reference: Drawn,
    known: dict[str, np.ndarray],
    prompts: Sequence[str],
    asked: dict[str, Any],
) -> None:
    """Prints one row."""
    made = drawn(pipeline, prompts, asked)
    psnr = made.psnr(reference)
    gain = psnr - known.setdefault(name[:2], psnr)
    over = f"{gain.mean():+.2f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.2f}" if gain.any() else "–"
    size = pipeline.family.transformer.held_bytes(2) / 1e6  # as on a GPU
    error = made.velocity_percent(reference)
    spread, pooled = f"{psnr.mean():.2f} ± {psnr.std(ddof=1):.1f}", f"{made.pooled_psnr(reference):.2f}"
    numbers = f"{bits_per_weight(pipeline):.2f} | {size:.2f} | {error:.3f} | {spread} | {pooled} | {over}"
    gmsd, flat = made.distances(reference)
    shift, contrast = f"{made.shift(reference):.2f}", f"{made.contrast(reference):.4f}"
    print(f"| {name} | {numbers} | {gmsd} | {shift} | {contrast} | {flat} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="names or folders")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--captions", type=int, default=0, metavar="SEED", help="0: those that recipes were chosen on")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, help="side in pixels")
    parser.add_argument("--schemes", nargs="*", default=[], help="only those with one of these words in the name")
    args = parser.parse_args()
    asked: dict[str, Any] = {"steps": args.steps} if args.steps else {}
    if args.size:
        asked |= {"width": args.size, "height": args.size}
    for folder in args.models:
        compare(folder, captions(CALIBRATION + args.pictures, args.captions)[CALIBRATION:], asked, args.schemes)


if __name__ == "__main__":
    main()
