"""The prompt in its template -> token ids, and the transformer's sequence.

In: the user's words, and the grids of the pictures shown with them. Out: `Read`. Must not know: features, pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ...errors import RequestError
from ...layers.patches import Grid
from ...text.tokenizer import Tokenizer

PICTURE = "<|image_pad|>"
SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"  # not passed on
START, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
SLOT = 2  # the transformer's tokens along each side of what the language model sees as one


class Read(NamedTuple):
    ids: list[int]
    system: int  # how many of them, from the first, are the system's
    picture: int  # the id that stands where a picture is seen
    segments: tuple[int | Grid, ...]  # the transformer's, without the system's


def read_prompt(tokenizer: Tokenizer, text: str, grids: Sequence[Grid] = ()) -> Read:
    """`grids`: of the pictures, as the language model sees them."""
    shown = " ".join(
        f"<image{number}><|vision_start|>{PICTURE}<|vision_end|>" for number, _ in enumerate(grids, start=1)
    )
    picture, system = tokenizer.id_of(PICTURE), len(tokenizer.encode(SYSTEM).ids)
    once = tokenizer.encode(SYSTEM + START + shown + (text or " ") + END).ids
    if once.count(picture) != len(grids):
        raise RequestError(
            f"the prompt holds the characters '{PICTURE}', by which the model is shown a picture; leave them out."
        )
    ids: list[int] = []
    segments: list[int | Grid] = []
    words, left = -system, iter(grids)
    for token in once:
        if token != picture:
            ids.append(token)
            words += 1
            continue
        rows, columns = next(left)
        ids += [picture] * (rows * columns)
        segments += [words, (SLOT * rows, SLOT * columns)]
        words = 0
    return Read(ids, system, picture, (*segments, words))
