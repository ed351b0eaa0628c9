"""`generate`, light to import: MLX and the rest come in when it is called.

The parameters stand here once, with their types, for editors and readers; pipeline.py and request/job.py give them
meaning.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .image import Picture
    from .pipeline import StepEvent


class Parameters(TypedDict, total=False):
    """What a picture may be asked with. What is left out comes from the model's manifest."""

    seed: "int | Sequence[int] | None"  # the same seed is the same picture, here and in diffusers; None draws one
    count: int  # that many pictures, from the seed upwards
    steps: int
    width: int
    height: int
    aspect: str  # "16:9": the model's preset size of that shape
    guidance: float  # how strongly to follow the prompt; 1 or 0 is off where it is a scale between two branches
    true_cfg: float  # FLUX.1: a second branch for the negative prompt, at this scale
    negative_prompt: str
    max_sequence_length: int  # tokens of the prompt that are read
    image: "Picture"  # begin from this picture …
    strength: float  # … and change it by this much: 0 to 1
    references: "Sequence[Picture]"  # pictures that the prompt speaks of, for models that edit
    layout: "Sequence[Any]"  # where each reference belongs: boxes
    keep_original_aspect: bool  # size the result like the one reference
    noise: "np.ndarray"  # unit normals [1, C, h, w], instead of the seed's
    sampler: str
    shift: float
    timesteps: "Sequence[float]"
    noise_scale: "float | Sequence[float]"
    noise_clip: float
    step_noise: "Sequence[np.ndarray]"  # the noise of each step, for samplers that draw it
    blend_seams: "int | str"  # HiDream-O1: soften the patch grid, by so many pixels or "adaptive"
    on_step: "Callable[[StepEvent], None]"  # called after every step
    # How the model is opened
    quant: str  # pack the weights while they are loaded: q8, q6, q4 or a recipe's file
    lora: "Sequence[Any]"  # files or (file, scale)
    lora_partial: bool  # allow LoRAs of which a part fits no module
    resident: "bool | None"  # keep all stages in memory, one at a time, or (None) as fits
    on_load: "Callable[[str, int, int], None]"  # component, bytes done, bytes in all
    on_download: "Callable[[str], None]"  # told how much is downloaded, and under which licence


def generate(
    prompt: str | Sequence[str], *, model: "str | Path | None" = None, **parameters: Unpack[Parameters]
) -> Any:
    """Makes one picture (a `Result`), or a list of them for several prompts, seeds or a count.

    `model`: a manifest's name, a repository id or a local folder. The parameters: `Parameters`.
    """
    from . import pipeline

    asked: dict[str, Any] = dict(parameters)
    opening = {name: asked.pop(name) for name in pipeline.LOAD_FIELDS if name in asked}
    named = pipeline.DEFAULT_MODEL if model is None else model
    pipeline.refuse_early(named, prompt, **{name: value for name, value in asked.items() if name != "on_step"})
    return pipeline.load(named, **opening).generate(prompt, **asked)
