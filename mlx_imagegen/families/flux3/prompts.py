"""The prompt in its template -> token ids, filled up to a window.

In: the user's words and how many tokens are read at most. Out: `Read`. The transformer attends to the padding, so that
the window's length is part of what the model was made for.
"""

from typing import NamedTuple

from ...text.tokenizer import Tokenizer

BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
PAD = "<|endoftext|>"
WINDOW = 80  # tokens; prompts are filled up to a multiple


class Read(NamedTuple):
    ids: list[int]  # padding included
    length: int  # of the prompt and its template
    cut: str  # the end of the prompt that did not fit


def read_prompt(tokenizer: Tokenizer, text: str, length: int) -> Read:
    ids, cut = tokenizer.encode_between(BEFORE, text, AFTER, length)
    window = min(len(ids) + -len(ids) % WINDOW, length)
    return Read(ids + [tokenizer.id_of(PAD)] * (window - len(ids)), len(ids), cut)
