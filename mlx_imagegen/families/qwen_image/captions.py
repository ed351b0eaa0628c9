"""What a picture shows, in the text encoder's words, for a prompt that has none.

The text encoder is a language model that sees: its vision tower and its head, which writes words, are opened for this
alone.
In: a picture in the size of its layers, and the text encoder. Out: a caption, as diffusers' Qwen-Image-Layered has it
written.
Must not know: the transformer, layers.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ...errors import InsufficientMemoryError, MissingFileError
from ...layers.linear import Linear
from ...loading.component import Component
from ...loading.weights import check_tensors
from ...machine import GB, memory_limit
from ...precision import compute_dtype
from ...text.generation import OnToken, greedy, repetition_penalty
from ...text.qwen import HEAD, STOPS, mrope, text_positions
from ...text.tokenizer import Tokenizer
from ...vision.patches import Patches, read_patch_config, to_patches
from ...vision.qwen2_5 import VISION, VisionConfig, encode_patches, vision_shapes, vision_tower
from ...vision.tower import check_has_tower
from .files import QwenImageFiles
from .prompts import PICTURE

# diffusers' in English, with its line breaks.
QUESTION = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
# Image Annotator
You are a professional
image annotator. Please write an image caption based on the input image:
1. Write the caption using natural,
descriptive language without structured formats or rich text.
2. Enrich caption details by including:\x20
 - Object
attributes, such as quantity, color, shape, size, material, state, position, actions, and so on
 - Vision Relations
between objects, such as spatial relations, functional relations, possessive relations, attachment relations, action
relations, comparative relations, causal relations, and so on
 - Environmental details, such as weather, lighting,
colors, textures, atmosphere, and so on
 - Identify the text clearly visible in the image, without translation or
explanation, and highlight it in the caption with quotation marks
3. Maintain authenticity and accuracy:
 - Avoid
generalizations
 - Describe all visible information in the image, while do not add information not explicitly shown in
the image
<|vision_start|><|image_pad|><|vision_end|><|im_end|>
<|im_start|>assistant
"""
MOST_TOKENS = 512  # of a caption


def describe(
    picture: Image.Image, files: QwenImageFiles, model: Component, tokenizer: Tokenizer, on_token: OnToken | None = None
) -> str:
    """`model`: the text encoder's, which is left loaded: the caption is encoded next."""
    folder = files.tokenizer.parent
    head, vision = _head(files), _vision(files)
    need = model.nbytes + head.nbytes
    if need > (limit := memory_limit()).most_bytes:
        raise InsufficientMemoryError(
            f"no prompt is given, and to describe the picture takes {need / GB:.1f} GB, and {limit}; give a prompt."
        )
    patches = to_patches(picture, read_patch_config(folder / "processor", folder / "text_encoder"))
    try:
        features = encode_patches(vision.load(), patches, vision.dtype)
    finally:
        vision.release()
    try:
        return tokenizer.decode(_written(files, model, head, tokenizer, patches, features, on_token)).strip()
    finally:
        head.release()


def _written(
    files: QwenImageFiles,
    model: Component,
    head: Component,
    tokenizer: Tokenizer,
    patches: Patches,
    features: mx.array,
    on_token: OnToken | None,
) -> list[int]:
    picture, dtype = tokenizer.id_of(PICTURE), compute_dtype()
    rows, columns = patches.merged
    ids = tokenizer.encode(QUESTION.replace(PICTURE, PICTURE * (rows * columns))).ids
    positions = text_positions(ids, picture, [patches.merged])
    x = files.text.gather(files.text_table, ids, dtype)
    (places,) = np.nonzero(np.array(ids) == picture)
    x[mx.array(places)] = features.astype(dtype)
    kept, position = None, int(positions.max())

    def logits(x: mx.array, positions: np.ndarray) -> mx.array:
        nonlocal kept
        out, kept = model.load().continued(x[None], mrope(positions, files.text_config), kept)
        return head.load().lm_head(out[0, -1])  # type: ignore[no-any-return]

    def following(token: int) -> mx.array:
        nonlocal position
        position += 1
        return logits(files.text.gather(files.text_table, [token], dtype), np.full((3, 1), position))

    stops = [tokenizer.id_of(stop) for stop in STOPS]
    penalty = repetition_penalty(files.tokenizer.parent / "text_encoder")
    return greedy(logits(x, positions), following, stops, MOST_TOKENS, on_token, penalty, ids)


def _head(files: QwenImageFiles) -> Component:
    if f"{HEAD}weight" not in files.text.slices:
        raise MissingFileError(
            f"no prompt is given, and {files.text.checkpoint.shown} cannot describe the picture: packed copies have no "
            "head, which writes words. Give a prompt, or take the full model with quant."
        )

    def build() -> nn.Module:
        root = nn.Module()
        root.lm_head = Linear(files.text_config.hidden_size, files.text_config.vocab_size, bias=False)
        return root

    return _component(files, build, HEAD)


def _vision(files: QwenImageFiles) -> Component:
    check_has_tower(files.text, VISION)
    where = Path(files.text.checkpoint.where) / "config.json"
    config = VisionConfig.read_part(dict(files.text.config), where)
    component = _component(files, lambda: vision_shapes(config), VISION)
    return Component(component.weights, lambda: vision_tower(config), compute_dtype())


def _component(files: QwenImageFiles, build: Callable[[], nn.Module], prefix: str) -> Component:
    """A part of the text encoder's file, by how its tensors' names begin."""
    others = [name for name in files.text.slices if not name.startswith(prefix)]
    weights = check_tensors(files.text, [build()], others, transforms=files.text.transforms)
    return Component(weights, build, compute_dtype())
