"""The sequence that HiDream-O1 reads: ids of the prompt, positions of all tokens.

In: words, picture sizes. Out: ids and positions [3, L], as upstream lays them out:

    <|im_start|>user \\n [each reference's features] prompt <|im_end|> \\n <|im_start|>assistant \\n <|boi|> <|tms|>
    then the target's patches, then each reference's patches
"""

from collections.abc import Sequence

import numpy as np

from ...errors import RequestError
from ...layers.patches import Grid
from ...text.qwen import text_positions
from ...text.tokenizer import Tokenizer
from .config import HiDreamConfig

START, END = "<|im_start|>", "<|im_end|>"
PICTURE = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


def prompt_ids(prompt: str, config: HiDreamConfig, tokenizer: Tokenizer, pictures: Sequence[Grid] = ()) -> list[int]:
    """The causal part and the timestep token, which is last; `pictures`: the merged grids of what the prompt shows."""
    first, pad, last = PICTURE
    shown = "".join(first + pad * (rows * columns) + last for rows, columns in pictures)
    ids = tokenizer.encode(f"{START}user\n{shown}{prompt}{END}\n{START}assistant\n").ids
    if ids.count(config.image_token) != sum(rows * columns for rows, columns in pictures):
        raise RequestError(
            f"the prompt holds {pad}, which stands for a part of a reference picture here; leave it out, and give "
            "pictures as references."
        )
    return [*ids, config.boi, config.tms]


def positions(
    ids: Sequence[int],
    config: HiDreamConfig,
    target: Grid,
    pictures: Sequence[Grid] = (),
    references: Sequence[Grid] = (),
) -> np.ndarray:
    """[3, T + L + R]: text and shown pictures as Qwen3-VL counts them; the target from a fixed point on every axis,
    however long the text is; then each reference from one past the largest position before it."""
    parts = [text_positions(ids, config.image_token, pictures)]
    start = config.patch.fix_point
    for grid in (target, *references):
        parts.append(_grid_positions(grid, start))
        start = int(parts[-1].max()) + 1
    return np.concatenate(parts, axis=1)


def _grid_positions(grid: Grid, start: int) -> np.ndarray:
    rows, columns = np.indices(grid).reshape(2, -1)
    return np.stack([np.zeros_like(rows), rows, columns]) + start
