"""A tokenizer's folder -> its vocabulary, merges, scores, character map and added tokens.

In: tokenizer.json, or vocab.json + merges.txt, or spiece.model; next to them tokenizer_config.json, added_tokens.json
and special_tokens_map.json where they exist. Out: models and added tokens of the `tokenizers` package, and the tokens
that have a role. Must not know: how a model wants its text normalised and split into words (`tokenizer.py`).
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE, Model, Unigram

from ..errors import ConfigError, MissingFileError
from ..loading.config import read_json
from .spiece import Spiece, read_spiece

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
        return str(value["content"] if isinstance(value, dict) else value)


def read_vocabulary(folder: Path, roles: Mapping[str, str]) -> VocabularyFiles:
    """`roles` are those the model gives to tokens where the files give none."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not there; download the tokenizer again, or point to a complete folder.")
    config, saved = _optional(folder / "tokenizer_config.json"), _optional(folder / "tokenizer.json")
    try:
        if "added_tokens_decoder" in config:  # then it is the whole truth: the older files only repeat it
            listed = {int(index): _token(entry) for index, entry in config["added_tokens_decoder"].items()}
        else:
            config |= _optional(folder / "special_tokens_map.json")
            listed = _older_list(folder, config, saved)
        config = dict(roles) | {key: value for key, value in config.items() if value is not None}
        return VocabularyFiles(folder, config, listed, saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, "the list of added tokens", error) from error


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
    try:
        if not files.saved:
            return BPE.from_file(*(str(files.folder / name) for name in names), **options)
        saved = _saved_model(files, "BPE")
        return BPE(vocab=saved["vocab"], merges=[_pair(merge) for merge in saved["merges"]], **options)
    except ConfigError:
        raise
    except Exception as error:  # the package raises nothing more precise
        raise _unreadable(files.folder, what, error) from error


def unigram(files: VocabularyFiles, sentinels: Sequence[str]) -> tuple[Model, bytes]:
    """A unigram model and its character map, from tokenizer.json, or from spiece.model, which has no `sentinels`: they
    take the ids after its own, the last one first."""
    path = files.folder / ("tokenizer.json" if files.saved else "spiece.model")
    if not path.is_file():
        raise MissingFileError(
            f"{files.folder} has neither a tokenizer.json nor a spiece.model; download the tokenizer again: it "
            "is one of them."
        )
    try:
        spiece = _saved_spiece(files) if files.saved else read_spiece(path)
        more = [] if files.saved else [(token, 0.0) for token in reversed(sentinels)]
        return Unigram(spiece.pieces + more, unk_id=spiece.unknown_id), spiece.character_map
    except ConfigError:
        raise
    except Exception as error:
        raise _unreadable(files.folder, path.name, error) from error


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


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _token(entry: dict[str, Any]) -> AddedToken:
    return AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in FLAGS if flag in entry})


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _unreadable(folder: Path, what: str, error: Exception) -> ConfigError:
    return ConfigError(f"{folder}: {what} cannot be read ({error}); download the tokenizer again.")
