"""The prompt in its chat template -> token ids.

In: the user's words. Out: ids and what of the words did not fit. The template's own words count towards the length, and
its end is the first to be cut off, as in the reference. Must not know: text states.
"""

from ...text.tokenizer import Tokenizer, Tokens

START = "<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"  # thinking is left to the model, so that no empty thought stands here


def prompt_ids(tokenizer: Tokenizer, text: str, length: int) -> Tokens:
    ids, cut = tokenizer.encode(START + text + END, length)
    words = cut.removesuffix(END.strip()).strip() if cut.endswith(END.strip()) else ""
    return Tokens(ids, words)
