"""Says which words of a prompt a model of a few words does not know.

In: a prompt and a manifest that lists its model's words. Out: a note for the user, or nothing.
Must not know: tokenizers, weights.
"""

import functools
import re
from collections.abc import Iterator

from ..hub.manifest import Manifest, data_folder

LONGEST_LIST = 5


def unknown_words_note(manifest: Manifest, prompt: str) -> list[str]:
    """One note, or none: where all words are known, or the manifest lists none because the model knows any word."""
    unknown = unknown_words(prompt, known_words(manifest.words)) if manifest.words else []
    if not unknown:
        return []
    rest = f" and {len(unknown) - LONGEST_LIST} more" if len(unknown) > LONGEST_LIST else ""
    listed = ", ".join(word[:40] for word in unknown[:LONGEST_LIST])
    example = f'; it draws, for example, "{manifest.example}"' if manifest.example else ""
    return [f"{manifest.name} does not know: {listed}{rest}{example}"]


@functools.cache
def known_words(files: tuple[str, ...]) -> frozenset[str]:
    """The words of lists next to the manifests."""
    texts = [(data_folder("weights") / file).read_text(encoding="utf-8") for file in files]
    return frozenset(word for text in texts for word in text.split())


def unknown_words(prompt: str, known: frozenset[str]) -> list[str]:
    """In the prompt's order, each once, in lower case."""
    words = [word for word in re.findall(r"\w+", prompt.lower()) if word not in known]
    return list(dict.fromkeys(part for word in words for part in _unknown_parts(word, known)))


def _unknown_parts(word: str, known: frozenset[str]) -> Iterator[str]:
    """Chinese is written without spaces: the parts of a run of words that no known word covers."""
    if word.isascii():
        yield word
        return
    lengths = sorted({len(one) for one in known if not one.isascii()}, reverse=True)
    start = position = 0
    while position < len(word):
        length = next((n for n in lengths if word[position : position + n] in known), 0)
        if length and start < position:
            yield word[start:position]
        position += length or 1
        start = position if length else start
    if start < len(word):
        yield word[start:]
