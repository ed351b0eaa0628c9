"""Text -> token ids for CLIP, T5, Qwen2 and Mistral.

In: a tokenizer's folder. Out: `Tokenizer`, which gives ids and the end of the text that did not fit.
Must not know: file kinds (`vocabulary.py`), prompt templates, models, downloads.

The ids are those of transformers 5 on the same files. It takes vocabulary, merges, scores, character map and added
tokens from the files, and everything else (normalisation, splitting into words) from the model's own rules, even where
a tokenizer.json carries rules of its own; so do we. For T5 this settles what versions disagree about: words are split
at any white space (a tokenizer.json of transformers 4 does not split at U+0085), and a word after a special token gets
a word mark ("▁") as every other word does. sentencepiece itself gives other ids in rare cases: it reads "</s>" in a
prompt as plain characters, and normalises some combining sequences (half-width kana with a voicing mark) otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from ..documents import TEXT_LIMIT_BYTES, read_file
from ..errors import ConfigError, MissingFileError, RequestError
from ..escaping import quoted
from .vocabulary import VocabularyFiles, add_tokens, bpe, read_vocabulary, readable, special, unigram

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_WORD_END = "</w>"
END = "<|endoftext|>"
CLIP_ROLES = {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END, "pad_token": END}

T5_ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
LONGEST = 100_000  # tokens
T5_SENTINELS = 100  # <extra_id_0> … <extra_id_99>, unless tokenizer_config.json says otherwise
WORD_MARK = "▁"

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3.5's: marks that combine with a letter stay with it.
QWEN3_5_WORDS = QWEN_WORDS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
QWEN_ROLES = {"eos_token": END, "unk_token": END, "pad_token": END}


class Tokens(NamedTuple):
    ids: list[int]
    cut: str  # the end of the text that did not fit, for a note to the user; empty when all of it did


class Tokenizer:
    def __init__(
        self,
        engine: Engine,
        *,
        first: Sequence[str] = (),
        last: Sequence[str] = (),
        pad: str | None = None,
        length: int | None = None,
    ):
        self.length = length
        self._engine = engine
        self._first = [self.id_of(token) for token in first]
        self._last = [self.id_of(token) for token in last]
        self._pad = None if pad is None else self.id_of(pad)

    def encode(self, text: str, length: int | None = None) -> Tokens:
        """At most `length` ids, by default the tokenizer's own length, and all where that is None as well. CLIP and T5
        fill up to the length with the pad token; Qwen2 does not."""
        length = self.length if length is None else length
        encoding = self._engine.encode(_unicode(text), add_special_tokens=False)
        body, cut = encoding.ids, ""
        room = len(body) if length is None else length - len(self._first) - len(self._last)
        if room < 0:
            raise RequestError(f"a length of {length} tokens leaves no room for a prompt; ask for more.")
        if len(body) > room:
            cut = text[encoding.offsets[room][0] :].strip()
            body = body[:room]
        ids = [*self._first, *body, *self._last]
        if self._pad is not None and length is not None:
            ids += [self._pad] * (length - len(ids))
        return Tokens(ids, cut)

    def encode_between(self, before: str, text: str, after: str, length: int) -> Tokens:
        """A text in a template, whose own words count towards the length: one that is too long loses its end, and the
        template's after it, as in diffusers. What was cut is of the text alone."""
        ids, cut = self.encode(before + text + after, length)
        end = after.strip()
        lost = cut.removesuffix(end) if cut.endswith(end) else ""
        return Tokens(ids, lost[max(0, len(lost) - len(text)) :].strip())

    def decode(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        text: str = self._engine.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int:
        found = self._engine.token_to_id(token)
        if found is None:
            raise ConfigError(
                f"the tokenizer has no token '{token}', so its files are of another model; download them again."
            )
        return found


def clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP, with start and end tokens, padded to tokenizer_config.json's model_max_length."""
    files = read_vocabulary(folder, CLIP_ROLES)
    engine = Engine(bpe(files, unk_token=files.role("unk_token"), end_of_word_suffix=CLIP_WORD_END))
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    add_tokens(engine, files)
    length = files.config.get("model_max_length")
    if type(length) is not int or not 2 <= length <= LONGEST:  # transformers writes a huge float when nobody set one
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'} gives no model_max_length, the number of tokens that CLIP reads; take "
            "the file from the model's repository."
        )
    first, last, pad = (files.role(name) for name in ("bos_token", "eos_token", "pad_token"))
    return Tokenizer(engine, first=[first], last=[last], pad=pad, length=length)


def t5_tokenizer(folder: Path) -> Tokenizer:
    """T5, with an end token, padded to the length asked for. There is no mask: the encoder sees the padding."""
    files = read_vocabulary(folder, T5_ROLES)
    sentinels = _sentinels(files)
    model, character_map = unigram(files, sentinels)
    engine = Engine(model)
    if character_map:
        engine.normalizer = normalizers.Precompiled(character_map)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=WORD_MARK, prepend_scheme="always", split=True),
        ]
    )
    add_tokens(engine, files, [special(token) for token in sentinels])
    return Tokenizer(engine, last=[files.role("eos_token")], pad=files.role("pad_token"))


def qwen_tokenizer(folder: Path, words: str = QWEN_WORDS) -> Tokenizer:
    """Qwen2 to Qwen3-VL: byte-level BPE; nothing is put before or after the text, and nothing padded. `words`: how a
    text is split."""
    files = read_vocabulary(folder, QWEN_ROLES)
    engine = Engine(bpe(files))
    engine.normalizer = normalizers.NFC()
    prefix_space = files.config.get("add_prefix_space") or False
    if not isinstance(prefix_space, bool):
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'}: add_prefix_space is {quoted(prefix_space)}, not a bool."
        )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    add_tokens(engine, files)
    return Tokenizer(engine)


def qwen3_5_tokenizer(folder: Path) -> Tokenizer:
    return qwen_tokenizer(folder, QWEN3_5_WORDS)


def tekken_tokenizer(folder: Path) -> Tokenizer:
    """Mistral's: tokenizer.json has all its rules, and the templates have the tokens that begin and end a text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; download the tokenizer again: Mistral's is this one file.")
    with readable(folder, path.name):
        engine = Engine.from_str(read_file(path, TEXT_LIMIT_BYTES).decode())
    engine.no_padding()
    engine.no_truncation()
    return Tokenizer(engine)


def _sentinels(files: VocabularyFiles) -> list[str]:
    count = files.config.get("extra_ids", T5_SENTINELS)
    if type(count) is not int or not 0 <= count <= LONGEST:
        raise ConfigError(
            f"{files.folder / 'tokenizer_config.json'}: extra_ids is {quoted(count)}, which is no number of tokens."
        )
    return [f"<extra_id_{index}>" for index in range(count)]


def _unicode(text: str) -> str:
    """`text`, unless no UTF-8 can hold it: an argument or a file in another encoding leaves such halves behind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.end + 20]  # a template may stand before the user's own words
        raise RequestError(
            f"the prompt is not valid Unicode: it holds half of a surrogate pair, in {ascii(near)}. Type it again, or "
            "save the prompt file as UTF-8."
        ) from error
    return text
