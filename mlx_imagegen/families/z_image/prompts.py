"""The prompt in its chat template -> token ids.

In: the user's words. Out: ids and what of the words did not fit. Must not know: text states.
"""

from ...text.tokenizer import Tokenizer, Tokens

START = "<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"  # thinking is left to the model, so that no empty thought stands here


def prompt_ids(tokenizer: Tokenizer, text: str, length: int) -> Tokens:
    return tokenizer.encode_between(START, text, END, length)
