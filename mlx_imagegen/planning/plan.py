"""What a run will take, before it starts: bytes on disk and in memory by stage, arithmetic, and seconds at best.

In: an open family (headers only), a picture's settings, and perhaps a chip. Out: `Plan`, for people and for the check
that refuses a run which cannot fit. Nothing is read but headers and nothing is run. The seconds are a lower bound: no
chip multiplies faster than its peak, or reads weights faster than its memory gives them.
Must not know: how stages run, what this machine has (fitting.py).
"""

import fnmatch
import functools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..autoencoders import tiny
from ..families import TokenRoles
from ..families.base import Family, Prompt, Settings
from ..families.controls import ControlNetwork
from ..families.step_cache import KEPT_ARRAYS
from ..layers.conv import KERNEL
from ..layers.linear import STRIP, Linear
from ..layers.strips import STRIP_BYTES
from ..limits import CPU_CACHE_LIMIT_BYTES
from ..loading.component import Component
from ..machine import GB
from ..packing.recipes import Recipe
from ..precision import VAE_DTYPE, compute_dtype, on_gpu
from ..previews import FAST, FULL, TINY
from .chips import SOURCES, Chip, chip_named

NO_REFERENCES = Prompt("")

# The interpreter, MLX and the libraries, before anything is loaded. The GPU's is a guess on the safe side.
GPU_BASE_BYTES, CPU_BASE_BYTES = 250 * 10**6, 70 * 10**6
# Of a machine that shares layers with others, measured: MLX's ring sends from buffers of its own; on the CPU, Linux's
# allocator keeps what the columns were read through, up to twice its largest threshold.
RING_BYTES, READING_BYTES = 32 * 2**20, 64 * 2**20
PROMPT_TOKENS = 128  # of families that do not pad the prompt: a long one
QUERIES = TokenRoles().queries
# Activations alive at once in a block, counted in streams (tokens x width): residual, its norm, q, k, v, the products.
STREAMS = 8
SHARED_STREAMS = 4  # of them, those of heads, of which a machine has its share: q, k, v and what attention gives
# On a GPU, what the command buffers in flight hold on top: MLX submits ten before it waits, and their outputs are freed
# when they are done. A buffer takes operations until its arrays reach some 50 MB: about two at 1024x1024, then one. An
# estimate, from FLUX.1's blocks, whose operations give 2.5 streams on average.
BUFFERS_IN_FLIGHT, OUTPUT_STREAMS, SMALL_OUTPUT_BYTES = 10, 2.5, 75 * 10**6
LAYER_CHANNELS = 4  # colours and alpha
DECODED_COPIES = 2  # full-size activations that the autoencoder holds at once (layers/strips.py)
# The CPU backend unpacks a weight through so many copies: bits that divide 32 by shifts, the others one bit at a time.
UNPACKED_COPIES = {4: 2, 8: 2, 2: 2}
UNPACKED_COPIES_ODD = 7
# What a process on the CPU holds beyond what is in use, measured: buffers freed and kept. MLX's cache comes to hold as
# much as a block takes, if its limit allows; strips come in too many sizes to be used again, by it and by the system.
STRIPS_SLACK, TINY_STRIPS_SLACK = 1.5, 1.0  # the second of a tiny decoder, whose activations are all alike
SLACK_LIMIT_BYTES = 2 * CPU_CACHE_LIMIT_BYTES
BFLOAT16_BYTES = 2


@dataclass(frozen=True)
class Stage:
    name: str
    components: tuple[str, ...]
    disk_bytes: int  # of the files that its components are read from
    resident_bytes: int
    working_bytes: int  # on top, at the highest
    base_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.base_bytes + self.resident_bytes + self.working_bytes


@dataclass(frozen=True)
class Plan:
    disk_bytes: int
    stages: tuple[Stage, ...]
    branches: int  # passes through the denoiser a step
    steps: int
    step_flops: float
    step_bytes: float  # weights read, activations written and read

    @property
    def working_bytes(self) -> int:
        """The most that comes and goes within a stage."""
        return max(stage.working_bytes for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """With one stage at a time in memory."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def resident_bytes(self) -> int:
        """With all stages in memory."""
        return sum(stage.resident_bytes for stage in self.stages)

    @property
    def resident_peak_bytes(self) -> int:
        return self.resident_bytes + max(stage.base_bytes + stage.working_bytes for stage in self.stages)

    @property
    def decode_at_once_peak_bytes(self) -> int:
        """With decoder and denoiser in memory together."""
        both = [stage for stage in self.stages if stage.name in ("denoise", "decode")]
        held = sum(stage.resident_bytes for stage in both)
        return held + max(stage.base_bytes + stage.working_bytes for stage in both)

    def seconds(self, chip: Chip) -> float:
        """The loop on `chip`, at best."""
        arithmetic = self.step_flops / (chip.teraflops * 1e12)
        return self.steps * max(arithmetic, self.step_bytes / (chip.bandwidth_gb_per_second * 1e9))


def plan(
    family: Family[Any],
    settings: Settings,
    gpu: bool | None = None,
    prompt: Prompt = NO_REFERENCES,
    disk: Mapping[str, int] | None = None,
    recipe: Recipe | None = None,
    encodes_image: bool = False,
    preview: str = FAST,
) -> Plan:
    """`gpu`: as on a Mac (16-bit weights, fused attention) or as on the CPU; this machine if not said. On a GPU the
    freed buffers that MLX keeps (limits.py bounds them) come on top; it gives them back when memory is short.
    `prompt`: only its pictures and their layout count. `disk`: bytes by component, where they will not be those of the
    files open. `recipe`: as if the family were open with it. `encodes_image`: a picture to start from or
    to be controlled by is encoded first. `preview`: how unfinished pictures are shown, between two steps."""
    gpu = on_gpu() if gpu is None else gpu
    branches = 2 if settings.cfg > 1 else 1
    tokens = count_tokens(family, settings, prompt)
    passes = [_arithmetic(family, family.components[name], tokens, gpu, recipe) for name in family.stages["denoise"]]
    shares = [branches, *(branches if network.every_branch else 1 for network in family.controls.values())]
    flops, traffic = (sum(map(operator.mul, shares, column)) for column in zip(*passes, strict=True))
    names_used = ("adapters", "encode", *(["encode_image"] if encodes_image else []), "denoise", "decode")
    parts = {name: family.stages.get(name, ()) for name in names_used}
    parts["encode"] = tuple(each for name in family.encode_stages([prompt]) for each in family.stages[name])
    base = GPU_BASE_BYTES if gpu else CPU_BASE_BYTES
    if family.sharing is not None:
        base += RING_BYTES + (0 if gpu else READING_BYTES)
    stages = tuple(
        Stage(
            name,
            names,
            _disk_bytes((family.components[each] for each in names), disk),
            sum(held_bytes(family.components[each], gpu, recipe) for each in names),
            _working_bytes(family, name, names, tokens, settings, gpu, prompt, recipe, preview),
            base,
        )
        for name, names in parts.items()
        if names or name == "denoise" or (name == "encode" and prompt.references)
    )
    whole = _disk_bytes(family.components.values(), disk)
    return Plan(whole, stages, branches, settings.steps, flops, traffic)


def _disk_bytes(components: Iterable[Component], known: Mapping[str, int] | None) -> int:
    """Of the checkpoints that these read, each once."""
    weights = {component.weights.component: component.weights for component in components}
    return sum(known[name] if known else each.checkpoint.nbytes for name, each in weights.items())


def held_bytes(component: Component, gpu: bool, recipe: Recipe | None = None) -> int:
    """What a component's weights take when loaded; under another recipe than the one it was opened with, if given."""
    return component.held_bytes(number_bytes(component, gpu), recipe.packing if recipe else None)


def describe(made: Plan, chip: str | None = None) -> list[str]:
    """For people, a line each."""
    lines = [f"{'stage':<12}{'disk':>10}{'resident':>10}{'peak':>10}  holds"]
    for stage in made.stages:
        sizes = _row(stage.name, stage.disk_bytes, stage.resident_bytes, stage.peak_bytes)
        lines.append(f"{sizes}  {', '.join(stage.components) or 'for a moment what sees the references'}")
    whole = _row("in all", made.disk_bytes, made.resident_bytes, made.resident_peak_bytes)
    lines.append(f"{whole}  everything at once")
    lines.append(f"peak, one stage at a time: {gigabytes(made.peak_bytes)}")
    twice = ", prompt and negative prompt" if made.branches > 1 else ""
    for what, count in (("a step", 1), (f"{made.steps} steps", made.steps)):
        flops, traffic = count * made.step_flops / 1e12, count * made.step_bytes
        lines.append(f"{what}: {flops:.4g} TFLOP, {gigabytes(traffic)} through memory{twice}")
    if chip is not None:
        known = chip_named(chip)
        lines.append(f"{chip}: the {made.steps} steps take {made.seconds(known):.1f} s at the very least")
        lines.append(f"  with {known.bandwidth_gb_per_second:g} GB/s and {known.teraflops:g} TFLOP/s ({SOURCES})")
    return lines


def _row(name: str, *sizes: int) -> str:
    return f"{name:<12}" + "".join(f"{gigabytes(size):>10}" for size in sizes)


def gigabytes(size: float) -> str:
    if size >= GB / 10:
        return f"{size / GB:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} KB"


@dataclass(frozen=True)
class Tokens:
    prompt: int  # that the text encoder reads
    text: int  # those, and what image adapters add to them
    image: int  # the picture's own
    references: int
    prefix: int  # of references that stand before the picture, beyond those of the text

    @property
    def loop(self) -> int:
        return self.image + self.references

    @property
    def before(self) -> int:
        """All that stands before the picture."""
        return self.text + self.prefix


def count_tokens(family: Family[Any], settings: Settings, prompt: Prompt) -> Tokens:
    length = settings.extras.get("max_sequence_length", PROMPT_TOKENS)
    words = length if family.spec.roles.pads_prompt else min(length, PROMPT_TOKENS)
    more, multiple = family.reference_tokens(prompt, settings), family.spec.roles.multiple
    read, image = words + more.prompt, family.frames(settings) * math.prod(family.grid(settings))
    read, text, image = (count + -count % multiple for count in (read, read + more.adapted, image))
    return Tokens(read, text, image, more.image, more.prefix)


def tokens_through(path: str, roles: TokenRoles, tokens: Tokens) -> int:
    """How many tokens pass through a linear layer of the denoiser."""
    if _any(path, roles.single):
        return 1
    if _any(path, roles.text):
        return tokens.text
    if _any(path, roles.image):
        return tokens.image
    if _any(path, roles.references):
        return tokens.references
    return tokens.loop + (tokens.text if _any(path, roles.joint) else 0)


def loaded_linears(family: Family[Any], settings: Settings, prompt: Prompt) -> Iterator[tuple[Linear, int]]:
    """The denoiser's linear layers, loaded, and how many tokens each will see in a step."""
    tokens = count_tokens(family, settings, prompt)
    for name in family.stages["denoise"]:
        for path, layer in family.components[name].loaded_layers():
            if isinstance(layer, Linear):
                yield layer, tokens_through(path, family.spec.roles, tokens)


def _arithmetic(
    family: Family[Any], denoiser: Component, tokens: Tokens, gpu: bool, recipe: Recipe | None
) -> tuple[float, float]:
    """FLOPs and bytes of one pass: matrix products and attention; everything else is small next to them."""
    roles = family.spec.roles
    flops, traffic = 0.0, float(held_bytes(denoiser, gpu, recipe))
    for path, (rows, columns), _ in denoiser.linears():
        count = tokens_through(path, roles, tokens)
        flops += 2.0 * count * rows * columns
        traffic += count * (rows + columns) * number_bytes(denoiser, gpu)
        fused = columns * denoiser.held_share if _any(path, roles.fused_queries) else 0
        queries = rows if _any(path, roles.queries) else fused
        seen = count if _any(path, roles.apart) else tokens.loop + tokens.before
        flops += 4.0 * count * seen * queries
    return flops, traffic


def _working_bytes(
    family: Family[Any],
    stage: str,
    names: Sequence[str],
    tokens: Tokens,
    settings: Settings,
    gpu: bool,
    prompt: Prompt,
    recipe: Recipe | None,
    preview: str,
) -> int:
    """The most that a stage's arithmetic holds on top of the weights."""
    if stage == "decode":
        return _decode_bytes(family, names, settings, gpu)
    if stage == "encode_image":  # one picture after the other, at the size of what is drawn
        pixels = settings.width * settings.height
        return max(_autoencoder_bytes(family.components[name], pixels, ("encoder.conv_in", 0), gpu) for name in names)
    queries = family.spec.roles.queries
    if stage == "adapters":  # one picture after the other, too
        counts = dict(chain.from_iterable(adapter.tokens.items() for adapter in family.adapters.values()))
        return max(block_bytes(family.components[name], counts[name], gpu, queries, recipe) for name in names)
    if stage == "denoise":
        return _denoise_bytes(family, names, tokens, settings, gpu, recipe, preview)
    blocks = (block_bytes(family.components[name], tokens.prompt, gpu, queries, recipe) for name in names)
    most = max(blocks, default=0)
    if pixels := family.reference_pixels(prompt, settings):  # one picture after the other
        encoder = family.components["vae_encoder"]
        held = 0 if "vae_encoder" in names else held_bytes(encoder, gpu)
        most = max(most, held + _autoencoder_bytes(encoder, pixels, ("encoder.conv_in", 0), gpu))
    if prompt.references:  # what sees them takes a twentieth of its weights to do so
        seen = family.vision_param_count * (BFLOAT16_BYTES if gpu else 4)
        most = max(most, seen)  # it goes before the words are read
    return most


def _decode_bytes(family: Family[Any], names: Sequence[str], settings: Settings, gpu: bool) -> int:
    pixels = settings.width * settings.height
    layers = (family.frames(settings) - 1) * pixels * LAYER_CHANNELS * VAE_DTYPE.size  # kept until all are decoded
    return layers + _autoencoder_bytes(family.components[names[0]], pixels, ("conv_out", -1), gpu)


def _denoise_bytes(
    family: Family[Any],
    names: Sequence[str],
    tokens: Tokens,
    settings: Settings,
    gpu: bool,
    recipe: Recipe | None,
    preview: str,
) -> int:
    """A step, or what stands before the picture, computed once, or a preview; and what is kept from step to step."""
    queries, branches = family.spec.roles.queries, 2 if settings.cfg > 1 else 1
    count, keys = max(tokens.text + tokens.loop, tokens.before), tokens.before + tokens.loop
    blocks = (block_bytes(family.components[name], count, gpu, queries, recipe, keys) for name in names)
    passing = max(blocks, default=0)
    passing += sum(_control_bytes(network, tokens.image, gpu, queries) for network in family.controls.values())
    kept = 0
    if family.prefix_values:
        before = tokens.before if family.prefix_has_text else tokens.prefix
        values = int(family.prefix_values * family.transformer.held_share)
        values += sum(network.prefix_values for network in family.controls.values())
        kept += branches * before * values * number_bytes(family.transformer, gpu)
    if settings.cache:
        kept += branches * step_cache_bytes(family.transformer, tokens.image, gpu, queries)
    weights, shown = _preview_bytes(family, preview, settings, gpu)
    return kept + weights + max(passing, shown)


def _preview_bytes(family: Family[Any], preview: str, settings: Settings, gpu: bool) -> tuple[int, int]:
    """A preview's decoder, which stays from step to step, and what it holds while it decodes."""
    if preview == TINY:
        pixels = settings.width * settings.height
        return tiny.weight_bytes(), strips_bytes(pixels, tiny.WIDTH, tiny.WIDTH, gpu, TINY_STRIPS_SLACK)
    names = family.stages.get("decode", ()) if preview == FULL else ()
    if not names:
        return 0, 0
    return sum(held_bytes(family.components[name], gpu) for name in names), _decode_bytes(family, names, settings, gpu)


def step_cache_bytes(denoiser: Component, tokens: int, gpu: bool, queries: tuple[str, ...] = QUERIES) -> int:
    """What one branch's step cache keeps, and makes while it does."""
    return KEPT_ARRAYS * tokens * _width(denoiser, queries) * number_bytes(denoiser, gpu)


def _width(component: Component, queries: tuple[str, ...]) -> int:
    """Of the stream, which is complete on every machine."""
    shapes = [(path, layer.weight.shape) for path, layer, _ in component.planned() if isinstance(layer, Linear)]
    return max((shape[0] for path, shape in shapes if _any(path, queries)), default=shapes[0][1][1])


def _control_bytes(network: ControlNetwork, tokens: int, gpu: bool, queries: tuple[str, ...]) -> int:
    """What a control network hands to the denoiser's blocks, all of it before the first; or what one that runs block by
    block next to them holds: its stream, and what it reads of its picture."""
    component = network.component
    if network.every_branch:
        return 2 * tokens * _width(component, queries) * number_bytes(component, gpu)
    outputs = [shape[0] for path, shape, _ in component.linears() if fnmatch.fnmatchcase(path, "controlnet*_blocks.*")]
    return tokens * sum(outputs) * number_bytes(component, gpu)


def block_bytes(
    component: Component,
    tokens: int,
    gpu: bool,
    queries: tuple[str, ...] = QUERIES,
    recipe: Recipe | None = None,
    keys: int = 0,
) -> int:
    """One block: its streams and its widest layer's input and output; on the CPU, attention's scores, the rows of a
    weight that are unpacked at a time, and what is freed and kept. `keys`: of how many tokens it attends to, where they
    are more than its own."""
    linears = component.linears(recipe.packing if recipe else None)
    if not linears:
        return 0
    width, held = _width(component, queries), component.held_share
    widest = max(max(shape) for _, shape, _ in linears)
    keys, streams = max(keys, tokens), STREAMS - (1 - held) * SHARED_STREAMS
    numbers = tokens * (streams * width + 2 * widest) + (keys - tokens) * 2 * width * held
    total = int(numbers) * number_bytes(component, gpu)
    if gpu:
        output = int(OUTPUT_STREAMS * tokens * width * number_bytes(component, gpu))
        return total + BUFFERS_IN_FLIGHT * (output + min(output, SMALL_OUTPUT_BYTES))
    total += int(component.heads * held) * tokens * keys * 4  # mx.fast is not fused there; softmax works in place
    total += min(total, CPU_CACHE_LIMIT_BYTES)
    unpacked = (
        4 * UNPACKED_COPIES.get(packing.bits, UNPACKED_COPIES_ODD) * min(math.prod(shape), STRIP)
        for _, shape, packing in linears
        if packing
    )
    return total + int((1 + STRIPS_SLACK) * max(unpacked, default=0))


def _autoencoder_bytes(component: Component, pixels: int, outermost: tuple[str, int], gpu: bool) -> int:
    """`outermost`: the convolution at the picture's end, and which axis of its weight is an activation's channels."""
    name, axis = outermost
    shapes = {path: layer["weight"].shape for path, layer, _ in component.planned() if "weight" in layer}
    channels = max((shape[axis] for path, shape in shapes.items() if path.endswith(name)), default=0)
    return strips_bytes(pixels, channels, 2 * channels, gpu)  # the level next to it is twice as wide at its other end


def strips_bytes(pixels: int, channels: int, widest: int, gpu: bool, slack: float = STRIPS_SLACK) -> int:
    """Two activations at full size and one strip's temporaries: a convolution gathers every window (Conv2d.row_bytes).
    `widest`: channels of what is convolved at that size. `slack`: what the CPU keeps of it when it is freed."""
    strip = min(STRIP_BYTES, pixels * widest * (KERNEL**2 + 4) * VAE_DTYPE.size)
    total = DECODED_COPIES * pixels * channels * VAE_DTYPE.size + strip
    return total + (strip if gpu else min(int(slack * total), SLACK_LIMIT_BYTES))


def number_bytes(component: Component, gpu: bool) -> int:
    """Bytes of one of the component's floating-point numbers."""
    if component.weights.component == "vae":
        return VAE_DTYPE.size
    if component.dtype != compute_dtype():  # chosen for it
        return component.dtype.size
    return BFLOAT16_BYTES if gpu else 4


@functools.cache
def _any(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in globs)
