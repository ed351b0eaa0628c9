"""The prompt in its chat template -> token ids.

In: the user's words, and how many reference pictures there are: the prompt comes in pieces, between which they stand,
and a last one that stands after the picture to be made. Out: ids and what of the words did not fit.
Must not know: text states.
"""

from collections.abc import Sequence

from ...text.tokenizer import Tokenizer, Tokens

START = "<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"  # thinking is left to the model, so that no empty thought stands here

SHOW, SHOWN = "<|vision_start|>", "<|vision_end|>"  # a picture stands between them


def prompt_ids(tokenizer: Tokenizer, text: str, length: int) -> Tokens:
    return tokenizer.encode_between(START, text, END, length)


def piece_ids(tokenizer: Tokenizer, text: str, length: int, references: int) -> tuple[Sequence[list[int]], str]:
    """Each piece has the whole `length`."""
    if not references:
        ids, cut = prompt_ids(tokenizer, text, length)
        return [ids], cut
    before = [START + SHOW, *[SHOWN + SHOW] * (references - 1)]
    words = tokenizer.encode_between(SHOWN, text, END + SHOW, length)
    after = SHOWN + END.partition("\n")[0]
    pieces = [*(tokenizer.encode(each, length).ids for each in before), words.ids, tokenizer.encode(after, length).ids]
    return pieces, words.cut
