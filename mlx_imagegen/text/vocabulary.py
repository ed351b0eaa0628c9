"""A tokenizer's folder -> its vocabulary, merges, scores, character map and added tokens.

In: tokenizer.json, or vocab.json + merges.txt, or spiece.model; next to them tokenizer_config.json, added_tokens.json
and special_tokens_map.json where they exist. Out: models and added tokens of the `tokenizers` package, and the tokens
that have a role. Must not know: how a model wants its text normalised and split into words (`tokenizer.py`).
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE, Model, Unigram

from ..documents import TEXT_LIMIT_BYTES, read_file, read_json
from ..errors import ConfigError, ImagegenError, MissingFileError
from ..escaping import quoted, shown
from .spiece import Spiece, checked, read_spiece

TOKEN_LENGTH, MOST_IDS = 1000, 10**7
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class VocabularyFiles:
    folder: Path
    config: dict[str, Any]  # tokenizer_config.json, over the model's own roles
    listed: dict[int, AddedToken]  # added tokens whose ids the files tell
    saved: dict[str, Any]  # tokenizer.json; empty where there is none

    def role(self, name: str) -> str:
        """The token that is the `bos_token`, `pad_token` …"""
        value = self.config[name]
        token = value.get("content") if isinstance(value, dict) else value
        if not isinstance(token, str) or not token:
            raise ConfigError(
                f"{self.folder}: the files give {shown(value)} as '{name}', which is no token; download them again."
            )
        return token


def read_vocabulary(folder: Path, roles: Mapping[str, str]) -> VocabularyFiles:
    """`roles` are those the model gives to tokens where the files give none."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not there; download the tokenizer again, or point to a complete folder.")
    config, saved = _optional(folder / "tokenizer_config.json"), _optional(folder / "tokenizer.json")
    with readable(folder, "the list of added tokens"):
        if "added_tokens_decoder" in config:  # then it is the whole truth: the older files only repeat it
            listed = {int(index): _token(entry) for index, entry in config["added_tokens_decoder"].items()}
        else:
            config |= _optional(folder / "special_tokens_map.json")
            listed = _older_list(folder, config, saved)
        config = dict(roles) | {key: value for key, value in config.items() if value is not None}
        return VocabularyFiles(folder, config, listed, saved)


def bpe(files: VocabularyFiles, **options: Any) -> Model:
    """A BPE model, from tokenizer.json or from vocab.json and merges.txt."""
    names = ("vocab.json", "merges.txt")
    what = "tokenizer.json" if files.saved else " or ".join(names)
    absent = [name for name in names if not (files.folder / name).is_file()]
    if not files.saved and absent:
        raise MissingFileError(
            f"{files.folder} has neither a tokenizer.json nor {' and '.join(absent)}; download the tokenizer again: it "
            "is vocab.json and merges.txt, or tokenizer.json alone."
        )
    with readable(files.folder, what):
        saved = _saved_model(files, "BPE") if files.saved else _separate_model(files.folder)
        vocab, merges = saved["vocab"], [_pair(merge) for merge in saved["merges"]]
        _check_vocabulary(files, vocab, merges)
        return BPE(vocab=vocab, merges=merges, **options)


def unigram(files: VocabularyFiles, sentinels: Sequence[str]) -> tuple[Model, bytes]:
    """A unigram model and its character map, from tokenizer.json, or from spiece.model, which has no `sentinels`: they
    take the ids after its own, the last one first."""
    path = files.folder / ("tokenizer.json" if files.saved else "spiece.model")
    if not path.is_file():
        raise MissingFileError(
            f"{files.folder} has neither a tokenizer.json nor a spiece.model; download the tokenizer again: it "
            "is one of them."
        )
    with readable(files.folder, path.name):
        spiece = checked(_saved_spiece(files) if files.saved else read_spiece(path))
        more = [] if files.saved else [(token, 0.0) for token in reversed(sentinels)]
        return Unigram(spiece.pieces + more, unk_id=spiece.unknown_id), spiece.character_map


def add_tokens(engine: Engine, files: VocabularyFiles, more: Iterable[AddedToken] = ()) -> None:
    """Makes the engine see added tokens in the text; those outside the vocabulary take the ids after it, in order."""
    listed = [files.listed[index] for index in sorted(files.listed)]
    known = {token.content for token in listed}
    others = [token for token in (*_named(files.config), *more) if token.content not in known]
    engine.add_tokens(listed + others)
    for index, token in files.listed.items():
        if (found := engine.token_to_id(token.content)) != index:
            raise ConfigError(
                f"{files.folder}: the files give the added token '{token.content}' the id {index}, but after the "
                f"vocabulary it gets {found}; they are of different models: download them again."
            )


def special(value: str | dict[str, Any]) -> AddedToken:
    """A token written by its name alone, or with its flags."""
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    return _token(value | {"special": True})


def _older_list(folder: Path, config: dict[str, Any], saved: dict[str, Any]) -> dict[int, AddedToken]:
    """The added tokens of files from before transformers 4.34, or of a tokenizer.json alone."""
    named = {token.content for token in _named(config)}
    listed = {
        index: AddedToken(content, normalized=content not in named, special=content in named)
        for content, index in _optional(folder / "added_tokens.json").items()
    }
    return listed | {entry["id"]: _token(entry) for entry in saved.get("added_tokens", ())}


def _named(config: dict[str, Any]) -> Iterator[AddedToken]:
    """The tokens that have a role (bos_token, image_token …), then the extra special ones."""
    for role, value in config.items():
        if role.endswith("_token") and isinstance(value, str | dict):  # add_bos_token is a bool
            yield special(value)
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = config.get(key) or []
        yield from (special(value) for value in (extra.values() if isinstance(extra, dict) else extra))


def _saved_spiece(files: VocabularyFiles) -> Spiece:
    """What spiece.model would say, from tokenizer.json; only the character map counts among its normalizers."""
    saved = _saved_model(files, "Unigram")
    normalizer = files.saved.get("normalizer") or {}
    maps = [step.get("precompiled_charsmap") for step in normalizer.get("normalizers", [normalizer])]
    character_map = next((base64.b64decode(characters) for characters in maps if characters), b"")
    return Spiece([(piece, score) for piece, score in saved["vocab"]], saved["unk_id"], character_map)


def _saved_model(files: VocabularyFiles, kind: str) -> dict[str, Any]:
    model = files.saved.get("model") or {}
    needed = {"vocab", "merges"} if kind == "BPE" else {"vocab", "unk_id"}
    if not needed <= set(model):  # older files do not say the type, but each type has parts of its own
        raise ConfigError(
            f"{files.folder / 'tokenizer.json'} holds a {model.get('type', 'nameless')} model where a whole {kind} is "
            "needed: it is another model's tokenizer, or it was cut. Download it again."
        )
    return model


def _separate_model(folder: Path) -> dict[str, Any]:
    """vocab.json and merges.txt"""
    text = read_file(folder / "merges.txt", TEXT_LIMIT_BYTES).decode()
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    merges = [line for line in lines if line and not line.startswith("#version")]
    return {"vocab": read_json(folder / "vocab.json"), "merges": merges}


def _check_vocabulary(files: VocabularyFiles, vocab: Any, merges: Sequence[tuple[str, str]]) -> None:
    """Every token is a character, made by a merge, or special: a list of merges that was cut leaves others."""
    if not isinstance(vocab, dict) or not all(type(index) is int and 0 <= index < MOST_IDS for index in vocab.values()):
        raise ValueError("the vocabulary is no table of tokens with their ids")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two tokens have one id")
    made = {left + right for left, right in merges}
    named = {token.content for token in (*files.listed.values(), *_named(files.config))}
    for token in vocab.keys() - made - named:
        if len(token) > TOKEN_LENGTH:
            raise ValueError(f"a token of {len(token)} characters")
        if len(token.removesuffix("</w>")) > 1 and not (token[0] == "<" and token[-1] == ">"):
            raise ValueError(f"no merge makes the token {quoted(token)}: the list of merges was cut")


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _token(entry: dict[str, Any]) -> AddedToken:
    flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
    if odd := [flag for flag, value in flags.items() if not isinstance(value, bool)]:  # "false" would count as true
        raise TypeError(f"'{odd[0]}' of {quoted(entry['content'])} is {quoted(flags[odd[0]])}")
    if not isinstance(entry["content"], str) or len(entry["content"]) > TOKEN_LENGTH:
        raise TypeError(f"{quoted(entry['content'])} is no token")
    return AddedToken(entry["content"], **flags)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


@contextmanager
def readable(folder: Path, what: str) -> Iterator[None]:
    """Around what reads a file's content: whatever is raised becomes an error that names the file."""
    try:
        yield
    except ImagegenError:
        raise
    except Exception as error:  # the package raises nothing more precise
        reason = shown(str(error), 120)
        raise ConfigError(f"{folder}: {what} cannot be read ({reason}); download the tokenizer again.") from error
