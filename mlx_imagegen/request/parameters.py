"""Every parameter of `generate` and `load`, declared once: type, kind, limits, default, help, flag and record.

Out: typed dictionaries for signatures, and `PARAMETERS`, the same fields as a table, in the order of `--help`. Checks
of types, the flags of the command line, records, help() and the README's table are read from it.
Light to import. Must not know: what a parameter does, argparse, manifests.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_args

from ..errors import RequestError
from . import kinds
from .kinds import Parameter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..image import Picture
    from ..lora.match import Lora
    from ..result import StepEvent

DEFAULT_MODEL = "flux-demo"  # small, bundled: the first picture needs no download
DEFAULT_STRENGTH = 0.6
LARGEST_SEED = 2**64 - 1  # torch's, and ComfyUI draws such; of it the generator reads the low 32 bits, there as here
MODELS_OWN = "the model's"


class CallParameters(TypedDict, total=False):
    """Of one call. Signatures write these out: the kind of result depends on them."""

    prompt: Annotated["str | Sequence[str]", Parameter(
        kinds.TEXT, "what the picture should show; several make a list of pictures", "what", "TEXT", portable=True,
    )]  # fmt: skip
    seed: Annotated["int | Sequence[int] | None", Parameter(
        kinds.SEEDS, "the same seed makes the same picture, here and in diffusers; several make more pictures", "how",
        "N|A-B", default_text="a fresh seed", limits=(0, LARGEST_SEED), portable=True,
        aliases=("generator", "seeds", "random_seed"),
    )]  # fmt: skip
    count: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "this many pictures, with seeds from the first upwards", "how", "N", limits=(1, 10_000),
        recorded=False, replaces=("seed",),
        aliases=("num_images", "num_images_per_prompt", "number_of_images", "batch_size", "batch_count", "n"),
    )]  # fmt: skip
    on_step: Annotated["Callable[[StepEvent], None] | None", Parameter(
        kinds.CALLBACK, "called after every step, with its seconds and `preview()`", recorded=False,
        aliases=("callback_on_step_end", "on_progress"),
    )]  # fmt: skip


class PictureParameters(TypedDict, total=False):
    """Of each picture. What is left out, or None, comes from the model's manifest."""

    upsample: Annotated[bool | str | None, Parameter(
        kinds.SWITCH_OR_TEXT, "FLUX.3: let its prompt upsampler, by name or folder, write a long caption of the prompt "
        "first", "what", "NAME", default_text="the prompt as it is", recorded=False, aliases=("enhance_prompt",),
    )]  # fmt: skip
    negative_prompt: Annotated[str | None, Parameter(
        kinds.TEXT, "what it should not show; needs `guidance` or `true_cfg` above 1", "what", "TEXT",
        default_text=MODELS_OWN, portable=True, aliases=("negative",),
    )]  # fmt: skip
    # Its upper limit: the models' own count of timesteps.
    steps: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "how many denoising steps", "how", "N", default_text=MODELS_OWN, limits=(1, 1000),
        replaces=("timesteps",), aliases=("num_inference_steps", "num_steps", "sampling_steps"),
    )]  # fmt: skip
    width: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "a multiple of 16 (FLUX.1, Qwen-Image) or 32, from 256 up (HiDream-O1)", "how", "PIXELS",
        default_text=MODELS_OWN, portable=True, aliases=("w",),
    )]  # fmt: skip
    height: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "a multiple of the same number as `width`", "how", "PIXELS", default_text=MODELS_OWN,
        portable=True, aliases=("h",),
    )]  # fmt: skip
    aspect: Annotated[str | None, Parameter(
        kinds.SHAPE, "a shape, such as 16:9, in the model's usual number of pixels", "how", "W:H", recorded=False,
        replaces=("width", "height"), aliases=("aspect_ratio", "ratio"),
    )]  # fmt: skip
    guidance: Annotated[float | None, Parameter(
        kinds.NUMBER, "how closely to follow the prompt", "how", "X", default_text=MODELS_OWN, limits=(0, 100),
        aliases=("guidance_scale", "cfg", "cfg_scale"),
    )]  # fmt: skip
    true_cfg: Annotated[float | None, Parameter(
        kinds.NUMBER, "FLUX.1: guidance by the negative prompt; other models use `guidance` for it", "how", "X",
        default_text="off", limits=(0, 100), aliases=("true_cfg_scale",),
    )]  # fmt: skip
    cfg_normalization: Annotated[bool | None, Parameter(
        kinds.SWITCH, "Z-Image, Qwen-Image-Layered: limit the guided velocity to the unguided one's length", "how",
        default=False, aliases=("cfg_normalize",),
    )]  # fmt: skip
    guidance_until: Annotated[float | str | None, Parameter(
        kinds.NUMBER_OR_TEXT, "run the second branch in this share of the steps only, or from one share to "
        "another (0.1-0.8); the other steps take half the time", "how", "X|X-Y", default_text="all steps",
        limits=(0, 1), aliases=("cfg_end", "guidance_end"),
    )]  # fmt: skip
    cache: Annotated[float | str | None, Parameter(
        kinds.NUMBER_OR_TEXT, "predict steps that change little: fast, or a threshold; larger is faster and less exact",
        "how", "fast|X", default_text="off", limits=(0, 2), aliases=("step_cache", "teacache"),
    )]  # fmt: skip
    preview: Annotated[str | None, Parameter(
        kinds.TEXT, "what `on_step` and --preview-every show: fast (colours of the latents), tiny (a tiny decoder, "
        "if the cache has it) or full (decoded)", "how", "fast|tiny|full", default_text="fast", recorded=False,
    )]  # fmt: skip
    max_sequence_length: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "how many tokens of the prompt are read", "how", "TOKENS", default_text=MODELS_OWN,
        aliases=("max_length", "max_tokens"),
    )]  # fmt: skip
    noise: Annotated["np.ndarray | None", Parameter(
        kinds.ARRAY, "the starting noise, unit normals in the shape that diffusers takes: [1, 16, H/8, W/8]", "how",
        "NPY", default_text="from the seed", hashed=True, aliases=("latents",),
    )]  # fmt: skip
    step_noise: Annotated["Sequence[np.ndarray] | None", Parameter(
        kinds.ARRAYS, "HiDream-O1's flash sampler: the noise of each step", "how", "NPY", default_text="from the seed",
        hashed=True,
    )]  # fmt: skip
    blend_seams: Annotated[int | str | None, Parameter(
        kinds.RADIUS, "HiDream-O1: soften the borders between patches, by a radius in pixels or adaptive", "how",
        "N|adaptive", default_text="off",
    )]  # fmt: skip
    image: Annotated["Picture | None", Parameter(
        kinds.PICTURE, "start from this picture; a larger one than the model usually draws is scaled down", "pictures",
        "FILE", hashed=True, aliases=("init_image", "image_path", "input_image"),
    )]  # fmt: skip
    strength: Annotated[float | None, Parameter(
        kinds.NUMBER, "how much to change the image: from just above 0 (keep it) to 1 (replace it)", "pictures", "X",
        default_text=str(DEFAULT_STRENGTH), limits=(0, 1), aliases=("image_strength", "denoise", "denoising_strength"),
    )]  # fmt: skip
    mask: Annotated["Picture | None", Parameter(
        kinds.PICTURE, "draw only the white part of the image; greys are soft edges", "pictures", "FILE",
        default_text="what is transparent in the image", hashed=True, aliases=("mask_image", "mask_path"),
    )]  # fmt: skip
    mask_box: Annotated["str | Sequence[int] | None", Parameter(
        kinds.CORNERS, "draw only this box of the image: x1,y1,x2,y2 in its pixels", "pictures", "X1,Y1,X2,Y2",
        aliases=("mask_bbox",),
    )]  # fmt: skip
    padding: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "draw the masked part with this many pixels around it, at full size", "pictures", "PIXELS",
        default_text="the whole image is drawn", limits=(0, 8192), aliases=("padding_mask_crop", "mask_padding"),
    )]  # fmt: skip
    expand: Annotated["str | dict[str, int] | None", Parameter(
        kinds.EXPANSION, "draw margins around the image: pixels by side, such as left=256,top=128", "pictures", "SIDES",
        replaces=("width", "height", "place"), aliases=("outpaint", "extend"),
    )]  # fmt: skip
    place: Annotated["str | Sequence[int] | None", Parameter(
        kinds.PLACE, "where the image lies in a picture of this width and height: x,y, or words such as top-left",
        "pictures", "X,Y", replaces=("expand",),
    )]  # fmt: skip
    control: Annotated["Picture | Sequence[Any] | None", Parameter(
        kinds.CONTROLS, "pictures to follow: (picture, control network, strength, kind, start, end)", "pictures",
        "FILE[,MODEL[,STRENGTH[,…]]]", hashed=True,
        aliases=("control_image", "controlnet", "controlnet_conditioning_scale"),
    )]  # fmt: skip
    references: Annotated["Sequence[Picture] | None", Parameter(
        kinds.PICTURES, "pictures that the prompt refers to, for models that edit", "pictures", "FILE", hashed=True,
        aliases=("images", "image_paths", "reference_images", "ref_images"),
    )]  # fmt: skip
    redux: Annotated["Picture | Sequence[Any] | None", Parameter(
        kinds.IMAGE_PROMPTS, "FLUX.1: pictures as a part of the prompt: (picture, scale, name or folder)", "pictures",
        "FILE[:SCALE[:MODEL]]", hashed=True, aliases=("redux_image", "image_prompt"),
    )]  # fmt: skip
    ip_adapter: Annotated["Picture | Sequence[Any] | None", Parameter(
        kinds.IMAGE_PROMPTS, "FLUX.1: pictures to look at next to the words: (picture, scale, folder of an IP-Adapter)",
        "pictures", "FILE[:SCALE[:MODEL]]", hashed=True, aliases=("ip_adapter_image",),
    )]  # fmt: skip
    transparent: Annotated[bool | None, Parameter(
        kinds.SWITCH, "Qwen-Image-2.1: a picture with alpha; the prompt says what is transparent", "pictures",
        default=False,
    )]  # fmt: skip
    layers: Annotated[int | None, Parameter(
        kinds.WHOLE_NUMBER, "Qwen-Image-Layered: how many layers to split the reference into", "pictures", "N",
        default_text=MODELS_OWN, limits=(1, 20), aliases=("num_layers",),
    )]  # fmt: skip
    layout: Annotated["Sequence[Any] | None", Parameter(
        kinds.BOXES, "HiDream-O1: where references go: [[x1, x2, y1, y2], …] from 0 to 1", "pictures", "JSON",
        aliases=("layout_bboxes",),
    )]  # fmt: skip
    keep_original_aspect: Annotated[bool | None, Parameter(
        kinds.SWITCH, "HiDream-O1: use the aspect ratio of a single reference", "pictures", default=False,
    )]  # fmt: skip
    sampler: Annotated[str | None, Parameter(
        kinds.TEXT, "the solver: unipc, flow_match or flash", "sampling", "NAME", default_text=MODELS_OWN,
        aliases=("scheduler", "sampler_name"),
    )]  # fmt: skip
    shift: Annotated[float | None, Parameter(
        kinds.NUMBER, "shift of the schedule; a larger one spends more steps at high noise", "sampling", "X",
        default_text=MODELS_OWN, limits=(0.1, 100),
    )]  # fmt: skip
    timesteps: Annotated["Sequence[float] | None", Parameter(
        kinds.NUMBERS, "the schedule itself: one decreasing value per step, below 1000", "sampling", "T",
        default_text=MODELS_OWN,
    )]  # fmt: skip
    noise_scale: Annotated["float | Sequence[float] | None", Parameter(
        kinds.ONE_OR_TWO_NUMBERS, "scale of the noise, or two scales: for the first and the last step", "sampling", "X",
        default_text=MODELS_OWN, limits=(0, 100),
    )]  # fmt: skip
    noise_clip: Annotated[float | None, Parameter(
        kinds.NUMBER, "clip noise at this many standard deviations; 0 does not clip", "sampling", "X",
        default_text=MODELS_OWN, limits=(0, 100),
    )]  # fmt: skip


class LoadParameters(TypedDict, total=False):
    """Of an open model: for all of its pictures."""

    model: Annotated["str | Path | None", Parameter(
        kinds.TEXT, "a name (`mlx-imagegen models` lists them), a Hugging Face repository id, a local folder, or a "
        "file of ComfyUI's or GGUF", "what", "MODEL", default_text=f"`{DEFAULT_MODEL}`",
        aliases=("checkpoint", "model_path", "pretrained_model"),
    )]  # fmt: skip
    quant: Annotated[str | None, Parameter(
        kinds.TEXT, "pack the weights while they are loaded: q8, q6, q4 or a recipe's file", "weights", "RECIPE",
        aliases=("quantize", "quantization", "bits"),
    )]  # fmt: skip
    lora: Annotated["Sequence[str | Path | tuple[str | Path, float] | Lora] | None", Parameter(
        kinds.LORAS, "merge these LoRAs: files, or files with a scale", "weights", "FILE[:SCALE]",
        aliases=("loras", "lora_paths", "lora_path"),
    )]  # fmt: skip
    precision: Annotated[str | None, Parameter(
        kinds.TEXT, "FLUX.1: how its transformer computes: float32, bfloat16 or float16", "weights", "DTYPE",
        default_text="bfloat16; float16 on M1 and M2; float32 on the CPU", aliases=("dtype", "torch_dtype"),
    )]  # fmt: skip
    lora_partial: Annotated[bool, Parameter(
        kinds.SWITCH, "allow LoRAs with parts that fit no module", "weights", default=False,
    )]  # fmt: skip
    resident: Annotated[bool | None, Parameter(
        kinds.CHOICE, "keep all parts of the model in memory, or one after the other", "weights",
        default_text="as fits the machine", recorded=False, aliases=("low_ram",),
    )]  # fmt: skip
    comfy: Annotated["str | Path | None", Parameter(
        kinds.TEXT, "ComfyUI's folder: `model` may name a file in it, and the files that it needs are found there",
        "weights", "DIR", default_text="the setting MLX_IMAGEGEN_COMFY", recorded=False,
    )]  # fmt: skip
    on_load: Annotated["Callable[[str, int, int], None] | None", Parameter(
        kinds.CALLBACK, "called while weights are read, with the component, the bytes read and the total",
        recorded=False,
    )]  # fmt: skip
    on_download: Annotated["Callable[[str], None] | None", Parameter(
        kinds.CALLBACK, "called before a download, with its size and licence, and with notes",
        default_text="prints to stderr", recorded=False,
    )]  # fmt: skip


class Parameters(PictureParameters, LoadParameters):
    """Everything that `generate` takes next to prompt, seed, count and on_step."""


FIELDS: dict[str, type] = {"call": CallParameters, "picture": PictureParameters, "load": LoadParameters}  # by scope
PARAMETERS: tuple[Parameter, ...] = tuple(
    replace(get_args(annotation)[1], name=name, scope=scope)
    for scope, fields in FIELDS.items()
    for name, annotation in fields.__annotations__.items()
)
CALL, PICTURE_ROWS, LOAD = (tuple(row for row in PARAMETERS if row.scope == scope) for scope in FIELDS)
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}
PICTURE_FIELDS = tuple(parameter.name for parameter in PICTURE_ROWS)
REQUEST_FIELDS = (*(parameter.name for parameter in CALL), *PICTURE_FIELDS)
LOAD_FIELDS = tuple(parameter.name for parameter in LOAD)
SAMPLING_FIELDS = tuple(parameter.name for parameter in PARAMETERS if parameter.group == "sampling")
ALIASES = {alias: parameter.name for parameter in PARAMETERS for alias in parameter.aliases}


def limits(name: str) -> tuple[float, float]:
    pair = BY_NAME[name].limits
    assert pair is not None, name
    return pair


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """The parameter that an unknown name probably means."""
    known = list(known)
    if ALIASES.get(name) in known:
        return ALIASES[name]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raises for a name that is not known; prompt, seed, count and on_step are, wherever this is called."""
    for name in sorted(set(given) - set(known)):
        near = suggestion(name, (*FIELDS["call"].__annotations__, *known))
        hint = f"did you mean {near}?" if near else f"known: {', '.join(REQUEST_FIELDS)}; and what load() takes."
        raise RequestError(f"there is no parameter '{name}'; {hint}")
