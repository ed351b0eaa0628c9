"""The prompt in its template -> token ids.

In: the user's words, and the grids of the pictures they speak of. Out: `Read`, with every picture's one placeholder
token repeated for each of its merged patches. Must not know: features, pictures' pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ...errors import RequestError
from ...layers.patches import Grid
from ...text.tokenizer import Tokenizer
from .editing import Editing

END = "<|im_end|>\n<|im_start|>assistant\n"
GENERATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where "
    "appropriate.<|im_end|>\n<|im_start|>user\n"
)
GENERATE_TOKENS, EDIT_TOKENS = 34, 64  # of what stands before the user's words; diffusers fixes them in code
PICTURE = "<|image_pad|>"


class Read(NamedTuple):
    ids: list[int]
    template: int  # how many of them, from the first, are the template's
    picture: int  # the id that stands where a picture is seen
    cut: str  # the end of the prompt that did not fit


def ids_of(tokenizer: Tokenizer, text: str, editing: Editing | None, grids: Sequence[Grid], length: int) -> Read:
    """`length` bounds the prompt (with the template's end); diffusers bounds it for text-to-image alone."""
    picture = tokenizer.id_of(PICTURE)
    if editing is None:
        ids, cut = tokenizer.encode(GENERATE + text + END, GENERATE_TOKENS + length)
        cut = cut.removesuffix(END.strip()) if END.strip() in cut else ""
        return Read(ids, GENERATE_TOKENS, picture, cut.strip())
    ids, _ = tokenizer.encode(EDIT + editing.introduction(grids) + text + END)
    if ids.count(picture) != len(grids):
        raise RequestError(
            f"the prompt holds the characters '{PICTURE}', by which the model is shown a picture; leave them out."
        )
    return Read(_repeated(ids, picture, grids), EDIT_TOKENS, picture, "")


def _repeated(ids: Sequence[int], picture: int, grids: Sequence[Grid]) -> list[int]:
    counts = iter([rows * columns for rows, columns in grids])
    return [index for index in ids for _ in range(next(counts) if index == picture else 1)]
