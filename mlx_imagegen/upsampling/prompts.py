"""What the upsampler is asked: its chat template, the user's turn, and the system prompts that its folder brings.

In: a request, how many tokens each picture takes, the rows of boxes. Out: the text to be encoded.
Must not know: tokenizers, models.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..documents import read_json
from ..errors import ConfigError, MissingFileError
from .boxes import Row

FILE = "system_prompts.json"
MODES = ("t2i", "i2i", "t2i_bbox", "i2i_bbox")
LONGEST = 100_000  # characters

# Qwen3.5's chat template, with thinking off.
TEMPLATE = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)
PICTURE_START, PICTURE_TOKEN, PICTURE_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"

# The user's turn after the pictures, without boxes and with them.
EDIT = (
    "Reference images follow in order (the first image, the second image, ...).\nUser request: {request}\n"
    "Output the caption."
)
BOXED_EDIT = (
    "Reference images follow in attachment order: ref_image_0, ref_image_1, ...\nUser editing instruction: {request}\n"
    "Decide the edit, imagine the target image, and output the annotation record."
)
LAYOUT = (
    "ORIGINAL PROMPT:\n{request}\n\nLOCKED BOUNDING-BOX ANNOTATIONS ([y_min, x_min, y_max, x_max] on a 0-1000 canvas, "
    "with (0, 0) at the top-left). This is an authoritative JSON list of dictionaries; preserve every supplied "
    "identity, provenance value, null, and coordinate exactly:\n{rows}"
)


def mode_of(pictures: int, boxed: bool) -> str:
    return ("i2i" if pictures else "t2i") + ("_bbox" if boxed else "")


def read_system_prompts(folder: Path) -> Mapping[str, str]:
    """By mode."""
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there, which tells the upsampler what to write: take it from its repository "
            f"(`hf download black-forest-labs/flux-3-image-klein-pup {FILE} --local-dir {folder}`)."
        )
    prompts = read_json(path)
    for mode in MODES:
        text = prompts.get(mode)
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            raise ConfigError(f"{path} has no text for '{mode}'; take the file from the upsampler's repository.")
    return {mode: prompts[mode] for mode in MODES}


def question(system: str, request: str, pictures: Sequence[int], locked: Sequence[Row] | None) -> str:
    """`pictures`: of each, how many tokens stand for it."""
    if locked:
        request = LAYOUT.format(request=request.strip(), rows=json.dumps(locked, ensure_ascii=False))
    shown = "".join(f"{PICTURE_START}{PICTURE_TOKEN * count}{PICTURE_END}" for count in pictures)
    if pictures:
        request = shown + (BOXED_EDIT if locked else EDIT).format(request=request)
    return TEMPLATE.format(system=system.strip(), user=request.strip())
