"""What a run will take, before it is begun: bytes on disk and in memory by stage, arithmetic, and seconds at best.

In: an open family (headers only), a picture's settings, and perhaps a chip. Out: `Plan`, for people and for the check
that refuses a run which cannot fit. Nothing is read but headers and nothing is run. The seconds are a lower bound: no
chip multiplies faster than its peak, or reads weights faster than its memory gives them.
Must not know: how stages run.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from PIL import Image

from .errors import MemoryShort, RequestError
from .family import Family, Settings
from .layers.linear import Linear, Packing
from .layers.strips import STRIP_BYTES
from .loading import Component, own_parameters
from .manifest import Manifest
from .memory import GB, physical_bytes
from .precision import VAE_DTYPE, on_gpu
from .quantization.recipes import Recipe, read_recipe, recipe_names


@dataclass(frozen=True)
class Chip:
    """`bandwidth`: Apple's own figure. `teraflops`: GPU cores x 128 lanes x 2 x clock; float16 is no faster than
    float32 in the arithmetic units of these generations. Both are what the largest variant has."""

    bandwidth_gb_per_second: float
    teraflops: float


# Bandwidths from Apple's newsroom and specification pages; clocks (1.28 GHz in M1, 1.40 in M2, 1.38 in M3, 1.58 in M4)
# from public measurements of the GPUs. Apple has published teraflops for M1 and M2 only, and those agree.
CHIPS = {
    "m1": Chip(68, 2.6), "m1-pro": Chip(200, 5.2), "m1-max": Chip(400, 10.4), "m1-ultra": Chip(800, 20.8),
    "m2": Chip(100, 3.6), "m2-pro": Chip(200, 6.8), "m2-max": Chip(400, 13.6), "m2-ultra": Chip(800, 27.2),
    "m3": Chip(100, 3.5), "m3-pro": Chip(150, 6.4), "m3-max": Chip(400, 14.1), "m3-ultra": Chip(819, 28.3),
    "m4": Chip(120, 4.0), "m4-pro": Chip(273, 8.1), "m4-max": Chip(546, 16.2),
}  # fmt: skip

# The interpreter, MLX and the libraries, before anything is loaded.
BASE_BYTES = 250 * 10**6
PROMPT_TOKENS = 128  # of families that do not pad the prompt: a long one
# Linear layers of the denoiser that see the prompt's tokens alone; then those that see prompt and picture.
TEXT_LAYERS = {
    "flux": ("context_embedder", "*.add_*_proj", "*.to_add_out", "*.ff_context.*"),
    "qwen_image": ("txt_in", "*.add_*_proj", "*.to_add_out", "*.txt_mlp.*"),
    "hidream_o1": (),
}
JOINT_LAYERS = {"flux": ("single_transformer_blocks.*",), "qwen_image": (), "hidream_o1": ()}
QUERIES = ("*.to_q", "*.add_q_proj", "*.q_proj")
PADS = frozenset({"flux"})  # families whose prompts always have max_sequence_length tokens
# Layers whose output is one token's, whatever the picture: they cost nothing in the loop.
ONE_TOKEN = ("*t_embedder1.*",)
# Activations alive at once in a block, counted in streams (tokens x width): residual, its norm, q, k, v, the products.
STREAMS = 8
HEAD_WIDTH = 128  # of every published model; only attention's scores on the CPU depend on it
DECODED_COPIES = 2  # full-size activations that the autoencoder holds at once (layers/strips.py)
GPU_SIZE = 2  # bytes of bfloat16


@dataclass(frozen=True)
class Stage:
    name: str
    components: tuple[str, ...]
    resident_bytes: int
    working_bytes: int  # on top, at the highest

    @property
    def peak_bytes(self) -> int:
        return BASE_BYTES + self.resident_bytes + self.working_bytes


@dataclass(frozen=True)
class Plan:
    disk_bytes: int
    stages: tuple[Stage, ...]
    branches: int  # passes through the denoiser a step
    steps: int
    step_flops: float
    step_bytes: float  # weights read, activations written and read

    @property
    def peak_bytes(self) -> int:
        """With one stage at a time in memory."""
        return max(stage.peak_bytes for stage in self.stages)

    def seconds(self, chip: Chip) -> float:
        """The loop on `chip`, at best."""
        arithmetic = self.step_flops / (chip.teraflops * 1e12)
        return self.steps * max(arithmetic, self.step_bytes / (chip.bandwidth_gb_per_second * 1e9))


Pictures = Sequence[Image.Image]


def plan(family: Family[Any], settings: Settings, gpu: bool | None = None, references: Pictures = ()) -> Plan:
    """`gpu`: as on a Mac (16-bit weights, fused attention) or as on the CPU; this machine if not said. `references`:
    the pictures that the prompt speaks of."""
    gpu = on_gpu() if gpu is None else gpu
    denoiser = family.components[family.stages["denoise"][0]]
    branches = 2 if settings.cfg > 1 else 1
    tokens = _tokens(family, settings, references)
    flops, traffic = _arithmetic(family, denoiser, tokens, gpu)
    stages = tuple(
        Stage(
            name,
            family.stages[name],
            sum(held_bytes(family.components[each], gpu) for each in family.stages[name]),
            _working_bytes(family, name, tokens, settings, gpu, references),
        )
        for name in ("encode", "denoise", "decode")
        if family.stages[name] or name == "denoise"
    )
    weights = {component.weights.component: component.weights for component in family.components.values()}
    disk = sum(each.checkpoint.nbytes for each in weights.values())
    return Plan(disk, stages, branches, settings.steps, branches * flops, branches * traffic)


def held_bytes(component: Component, gpu: bool, recipe: Recipe | None = None) -> int:
    """What a component's weights take when loaded; under another recipe than the one it was opened with, if given."""
    total = 0
    for path, layer, packing in component.planned():
        if isinstance(layer, Linear):
            packing = _by(recipe, component, path, layer) if recipe else packing
            if packing:
                layer.pack(packing)
        for value in own_parameters(layer).values():
            floating = mx.issubdtype(value.dtype, mx.floating)
            total += value.size * (_size(component, gpu) if floating else value.itemsize)
    return total


def describe(made: Plan, chip: str | None = None) -> list[str]:
    """For people, a line each."""
    lines = [f"{'stage':<9}{'resident':>10}{'peak':>10}  holds"]
    for stage in made.stages:
        sizes = f"{stage.resident_bytes / GB:>7.2f} GB{stage.peak_bytes / GB:>7.2f} GB"
        lines.append(f"{stage.name:<9}{sizes}  {', '.join(stage.components)}")
    lines.append(f"peak, one stage at a time: {made.peak_bytes / GB:.2f} GB; on disk: {made.disk_bytes / GB:.2f} GB")
    twice = ", prompt and negative prompt" if made.branches > 1 else ""
    lines.append(f"a step: {made.step_flops / 1e12:.2f} TFLOP, {made.step_bytes / GB:.1f} GB through memory{twice}")
    if chip is not None:
        seconds = made.seconds(chip_named(chip))
        lines.append(f"{chip}: the {made.steps} steps take {seconds:.1f} s at the very least")
    return lines


def chip_named(name: str) -> Chip:
    if name not in CHIPS:
        raise RequestError(f"no chip is called '{name}' here; known: {', '.join(CHIPS)}.")
    return CHIPS[name]


def check_fits(made: Plan, family: Family[Any], manifest: Manifest) -> None:
    """Raises for a run that this machine cannot hold even one stage at a time."""
    have = physical_bytes()
    if made.peak_bytes <= have:
        return
    worst = max(made.stages, key=lambda stage: stage.peak_bytes)
    smaller = _largest_that_fits(family, manifest, made, have)
    mend = (
        f"quant={smaller} would fit"
        if smaller
        else "no size of this model fits; use another machine or a smaller picture"
    )
    raise MemoryShort(
        f"{manifest.name} needs {made.peak_bytes / GB:.1f} GB for its {worst.name} stage alone, and this machine has "
        f"{have / GB:.1f} GB: it would not finish. {mend}."
    )


def _largest_that_fits(family: Family[Any], manifest: Manifest, made: Plan, have: int) -> str | None:
    if any(component.weights.stored for component in family.components.values()):
        return None
    working = {stage.name: stage.working_bytes for stage in made.stages}
    for name in sorted(recipe_names(), reverse=True):  # q8 first
        recipe = read_recipe(name, manifest.family)
        peaks = [
            BASE_BYTES
            + working[stage.name]
            + sum(held_bytes(family.components[c], on_gpu(), recipe) for c in stage.components)
            for stage in made.stages
        ]
        if max(peaks) <= have:
            return name
    return None


@dataclass(frozen=True)
class Tokens:
    text: int
    image: int  # the picture's own, and its references'


def _tokens(family: Family[Any], settings: Settings, references: Pictures = ()) -> Tokens:
    multiple = family.size_multiple
    image = (settings.width // multiple) * (settings.height // multiple) + family.reference_tokens(references)
    length = settings.extras.get("max_sequence_length", PROMPT_TOKENS)
    return Tokens(length if family.name in PADS else min(length, PROMPT_TOKENS), image)


def _seen_by(family: str, path: str, tokens: Tokens) -> int:
    """How many tokens pass through a linear layer of the denoiser."""
    if _any(path, ONE_TOKEN):
        return 1
    if _any(path, TEXT_LAYERS[family]):
        return tokens.text
    return tokens.image + (tokens.text if _any(path, JOINT_LAYERS[family]) else 0)


def loaded_linears(family: Family[Any], settings: Settings, references: Pictures = ()) -> Iterator[tuple[Linear, int]]:
    """The denoiser's linear layers, loaded, and how many tokens each will see in a step."""
    tokens = _tokens(family, settings, references)
    for name in family.stages["denoise"]:
        for path, layer in family.components[name].loaded_layers():
            if isinstance(layer, Linear):
                yield layer, _seen_by(family.name, path, tokens)


def _arithmetic(family: Family[Any], denoiser: Component, tokens: Tokens, gpu: bool) -> tuple[float, float]:
    """FLOPs and bytes of one pass: matrix products and attention; everything else is small beside them."""
    flops, traffic = 0.0, float(held_bytes(denoiser, gpu))
    for path, (rows, columns), _ in _linears(denoiser):
        count = _seen_by(family.name, path, tokens)
        flops += 2.0 * count * rows * columns
        traffic += count * (rows + columns) * _size(denoiser, gpu)
        if _any(path, QUERIES):
            flops += 4.0 * count * (tokens.image + tokens.text) * rows
    return flops, traffic


def _working_bytes(
    family: Family[Any], stage: str, tokens: Tokens, settings: Settings, gpu: bool, references: Pictures
) -> int:
    """The most that a stage's arithmetic holds beside the weights."""
    if stage == "decode":
        decoder = family.components[family.stages[stage][0]]
        return _autoencoder_bytes(decoder, settings.width * settings.height, "conv_out", -1)
    count = tokens.text + (tokens.image if stage == "denoise" else 0)
    most = max((block_bytes(family.components[name], count, gpu) for name in family.stages[stage]), default=0)
    if references and "vae_encoder" in family.stages[stage]:  # one picture after the other
        pixels = max(family.reference_tokens([picture]) for picture in references) * family.size_multiple**2
        most = max(most, _autoencoder_bytes(family.components["vae_encoder"], pixels, "encoder.conv_in", 0))
    return most


def block_bytes(component: Component, tokens: int, gpu: bool) -> int:
    """One block: its streams and its widest layer's input and output; on the CPU, attention's scores and dense
    weights."""
    linears = list(_linears(component))
    if not linears:
        return 0
    width = max((shape[0] for path, shape, _ in linears if _any(path, QUERIES)), default=linears[0][1][1])
    widest = max(max(shape) for _, shape, _ in linears)
    total = tokens * (STREAMS * width + 2 * widest) * _size(component, gpu)
    if not gpu:
        dense = max(rows * columns for _, (rows, columns), _ in linears)  # unpacked for one product
        total += (2 * max(1, width // HEAD_WIDTH) * tokens**2 + 2 * dense) * 4
    return total


def _autoencoder_bytes(half: Component, pixels: int, layer: str, axis: int) -> int:
    """Two activations at full size, as wide as the decoder's last convolution's input or the encoder's first one's
    output (`axis` of that layer's weight), and one strip's temporaries."""
    channels = max((each["weight"].shape[axis] for path, each, _ in half.planned() if path.endswith(layer)), default=0)
    return DECODED_COPIES * pixels * channels * VAE_DTYPE.size + 2 * STRIP_BYTES


def _linears(component: Component) -> Iterator[tuple[str, tuple[int, ...], Packing | None]]:
    return (
        (path, layer.weight.shape, packing) for path, layer, packing in component.planned() if isinstance(layer, Linear)
    )


def _by(recipe: Recipe, component: Component, path: str, layer: Linear) -> Packing | None:
    weights = component.weights
    return recipe.packing(weights.component, path, layer.weight.shape, weights.depth(path))


def _size(component: Component, gpu: bool) -> int:
    """Bytes of one of the component's floating-point numbers."""
    if component.weights.component == "vae":
        return VAE_DTYPE.size
    return GPU_SIZE if gpu else 4


def _any(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in globs)
