"""The prompt in its template -> token ids, for klein's Qwen3 and for dev's Mistral.

In: the user's words and how many tokens the transformer is given. Out: `Read`. Padding is part of what the transformer
attends to: klein's follows the prompt, dev's stands before it.
Must not know: features, pictures.
"""

from typing import NamedTuple

from ...text.tokenizer import Tokenizer

# Qwen3's chat template with one user turn, and without thinking.
KLEIN = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
KLEIN_PAD = "<|endoftext|>"
# Mistral's, with the system message that dev was trained with; diffusers fixes its words and line break.
SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
DEV = (f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]", "[/INST]")
DEV_PAD = "<pad>"
PICTURE = "[IMG]"  # Mistral's place for a picture; diffusers takes it out of prompts


class Read(NamedTuple):
    ids: list[int]
    pad: int  # the id that fills up
    cut: str  # the end of the prompt that did not fit


def read_klein(tokenizer: Tokenizer, text: str, length: int) -> Read:
    return _read(tokenizer, text, KLEIN, KLEIN_PAD, length)


def read_dev(tokenizer: Tokenizer, text: str, length: int) -> Read:
    return _read(tokenizer, text.replace(PICTURE, ""), DEV, DEV_PAD, length)


def _read(tokenizer: Tokenizer, text: str, template: tuple[str, str], pad: str, length: int) -> Read:
    ids, cut = tokenizer.encode_between(template[0], text, template[1], length)
    return Read(ids, tokenizer.id_of(pad), cut)
