"""Draws small tokenizers, in their published layouts and in others that are met, with transformers' ids of strings."""

import io
import itertools
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from text_prompts import FIXED, WORDS, prompts
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def train_bpe(texts: list[str], words: Any, count: int, end: str = "") -> list[tuple[str, str]]:
    """The `count` first merges of a byte-level BPE. Ours, because the package's trainer breaks ties by chance."""
    splitter = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    corpus = {(*word[:-1], word[-1] + end): times for word, times in counts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in corpus.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        corpus = {merged(word, merges[-1]): times for word, times in corpus.items()}
    return merges


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return tuple(out)


# Merges across the places where the models split a text: an id changes as soon as the splitting does.
CLIP_MERGES = [("1", "2"), ("1", "2</w>"), ("l", "l</w>"), ("'", "ll</w>"), ("'", "m</w>"), ("a", "1"), ("!", "a")]
QWEN_MERGES = [
    ("1", "2"), ("L", "L"), ("'", "LL"), ("'", "M"), ("'", "s"), ("a", "1"), ("Ġ", "Ġ"), ("ĠĠ", "Ġ"), ("Ġ", "Ċ"),
    ("Ċ", "Ċ"), ("č", "Ċ"), ("!", "Ċ"), ("Ġ", "!"), ("!", "a"), ("Ċ", "a"), ("ĉ", "a"), ("S", "a"), ("Ġ", "1"),
    ("Ġ", "ĉ"),
]  # fmt: skip


def write_bpe(folder: Path, vocab: list[str], merges: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(vocab)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_clip_tokenizer(folder: Path, texts: list[str], length: int) -> None:
    """vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json: the published four."""
    merges = train_bpe([text.lower() for text in texts], pre_tokenizers.WhitespaceSplit(), 280, end="</w>")
    merges = list(dict.fromkeys(CLIP_MERGES + merges))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [letter + "</w>" for letter in letters]
    vocab = list(dict.fromkeys([*letters, *("".join(pair) for pair in merges)]))
    write_bpe(folder, [*vocab, "<|startoftext|>", "<|endoftext|>"], merges)
    start = {"content": "<|startoftext|>", **FLAGS, "normalized": True}
    end = {"content": "<|endoftext|>", **FLAGS}
    roles = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    added = {str(len(vocab)): start | {"special": True}, str(len(vocab) + 1): end | {"special": True}}
    write_json(folder / "special_tokens_map.json", roles | {"bos_token": start, "unk_token": end})
    config = {"add_prefix_space": False, "added_tokens_decoder": added, "clean_up_tokenization_spaces": True}
    config |= {"do_lower_case": True, "errors": "replace", "model_max_length": length, "unk_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", config | roles | {"tokenizer_class": "CLIPTokenizer"})


QWEN_ADDED = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()


QWEN3_ADDED = "<tool_response> </tool_response> <think> </think>".split()  # next to those of the second generation


def draw_qwen_tokenizer(folder: Path, texts: list[str], more: Sequence[str] = ()) -> None:
    """vocab.json, merges.txt, added_tokens.json, special_tokens_map.json, tokenizer_config.json. `more`: added tokens
    that are not special."""
    merges = list(dict.fromkeys(QWEN_MERGES + train_bpe(texts, pre_tokenizers.Punctuation("isolated"), 280)))
    vocab = list(dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]))
    write_bpe(folder, vocab, merges)
    ids = {token: len(vocab) + index for index, token in enumerate([*QWEN_ADDED, *more])}
    special = set(QWEN_ADDED[:14])
    decoder = {str(index): {"content": token, **FLAGS, "special": token in special} for token, index in ids.items()}
    extra = QWEN_ADDED[1:14]
    config = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": decoder, "bos_token": None}
    config |= {"additional_special_tokens": extra, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config |= {"unk_token": None, "model_max_length": 131072, "tokenizer_class": "Qwen2Tokenizer"}
    write_json(folder / "added_tokens.json", ids)
    end, pad = ({"content": token, **FLAGS} for token in ("<|im_end|>", "<|endoftext|>"))
    roles = {"additional_special_tokens": extra, "eos_token": end, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", roles)
    write_json(folder / "tokenizer_config.json", config)


# A character map small enough for a stored draw. The real one, "nmt_nfkc", has these rules and 30,000 more.
CHARACTERS = {"ﬁ": "fi", "ﬀ": "ff", "½": "1⁄2", "Ａ": "A", "\u3000": " ", "\xa0": " ", "\t": " ", "\n": " ", "\r": " "}
SENTINELS = [f"<extra_id_{index}>" for index in range(100)]


def train_spiece(folder: Path, texts: list[str], rules: str) -> None:
    """spiece.model"""
    options = {"normalization_rule_name": rules}
    if rules == "custom":  # "from TAB to", in hexadecimal; the model keeps the table's path
        table = Path(tempfile.gettempdir()) / "characters.tsv"
        lines = [f"{ord(source):X}\t{' '.join(f'{ord(c):X}' for c in to)}\n" for source, to in CHARACTERS.items()]
        table.write_text("".join(lines))
        options = {"normalization_rule_tsv": str(table)}
    lines = [line for text in texts for line in text.replace("\x00", "").splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=400, hard_vocab_limit=False,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", character_coverage=0.98,
        num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())


def draw_t5_tokenizer(folder: Path, texts: list[str], rules: str) -> None:
    """spiece.model, tokenizer.json, special_tokens_map.json, tokenizer_config.json: the published four."""
    folder.mkdir(parents=True)
    train_spiece(folder, texts, rules)
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    named = {role: {"content": token, **FLAGS} for role, token in roles.items()}
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": SENTINELS} | named)
    engine = T5TokenizerFast.from_pretrained(folder).backend_tokenizer
    tokens = ["<pad>", "</s>", "<unk>", *reversed(SENTINELS)]
    decoder = {str(engine.token_to_id(token)): {"content": token, **FLAGS, "special": True} for token in tokens}
    for entry in decoder.values():
        entry["lstrip"] = entry["rstrip"] = entry["content"] in SENTINELS
    write_json(folder / "tokenizer.json", as_published(json.loads(engine.to_str()), decoder))
    config = {"added_tokens_decoder": decoder, "additional_special_tokens": SENTINELS, "extra_ids": 100, **roles}
    config |= {"clean_up_tokenization_spaces": True, "legacy": True, "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "T5Tokenizer"})


def as_published(saved: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    """With the rules that transformers 4 wrote: the published file has them, and transformers 5 does not see them."""
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    return saved | {
        "normalizer": {"type": "Sequence", "normalizers": [saved["normalizer"], strip, spaces]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "added_tokens": [{"id": int(index)} | entry for index, entry in decoder.items()],
    }


CLASSES = {"clip": CLIPTokenizer, "t5": T5TokenizerFast, "qwen": Qwen2Tokenizer}


def vary(folder: Path) -> None:
    """Other states in which a tokenizer's folder is met, next to the published one (`clip`, `t5`, `qwen`)."""
    for name, kind in CLASSES.items():
        saved = folder / f"{name}-saved"  # by the installed transformers
        kind.from_pretrained(folder / name).save_pretrained(saved)
        write_json(saved / "tokenizer.json", read_json(saved / "tokenizer.json"))  # without its indentation
        config = read_json(folder / name / "tokenizer_config.json")
        added = config.pop("added_tokens_decoder")
        legacy = folder / f"{name}-legacy"  # as before transformers 4.34: the config lists no added tokens
        shutil.copytree(folder / name, legacy)
        write_json(legacy / "tokenizer_config.json", config)
        bare = folder / f"{name}-bare"  # the vocabulary alone
        shutil.copytree(folder / name, bare, ignore=shutil.ignore_patterns("*token*"))
        if name == "clip":  # the one other fact that CLIP needs
            write_json(bare / "tokenizer_config.json", {"model_max_length": config["model_max_length"]})
    shutil.copytree(folder / "t5", folder / "t5-spiece", ignore=shutil.ignore_patterns("tokenizer.json"))
    shutil.copytree(folder / "qwen-bare", folder / "qwen-named")  # added tokens by their names alone
    named = [entry["content"] for entry in added.values()]
    write_json(folder / "qwen-named" / "tokenizer_config.json", {"extra_special_tokens": named, "unk_token": None})
    shutil.copytree(folder / "qwen-saved", folder / "qwen-strings")  # merges as older files write them
    saved = read_json(folder / "qwen-saved" / "tokenizer.json")
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    write_json(folder / "qwen-strings" / "tokenizer.json", saved)


def reference_ids(folder: Path, texts: list[str], length: int, t5_length: int) -> dict[str, Any]:
    """What the pipelines of diffusers ask for: CLIP and T5 cut and padded to `length`, Qwen whole. Kept without the
    padding (`pad`, up to `length`); a folder whose ids are those of the published kind is given by that kind's name."""
    out: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.partition("-")[0]
        tokenizer = CLASSES[name].from_pretrained(path)
        limit = {"clip": length, "t5": t5_length}.get(name)
        options = {"padding": "max_length", "max_length": limit, "truncation": True} if limit else {}
        ids = [tokenizer(text, **options).input_ids for text in texts]
        entry = {"length": limit, "pad": tokenizer.pad_token_id, "ids": ids}
        if limit:
            entry["ids"] = [unpadded(row, tokenizer.pad_token_id) for row in ids]
        out[path.name] = name if out.get(name) == entry else entry
    return out


def unpadded(ids: list[int], pad: int) -> list[int]:
    end = len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def draw_tokenizers(folder: Path, seed: int, dice: random.Random, rules: str) -> None:
    texts, corpus = prompts(seed), prompts(seed + 1)[len(FIXED) :] + [" ".join(WORDS)] * 3
    length, t5_length = dice.choice([77, 40, 24]), dice.choice([256, 96, 130])
    draw_clip_tokenizer(folder / "tokenizers/clip", corpus, length)
    draw_qwen_tokenizer(folder / "tokenizers/qwen", corpus)
    draw_t5_tokenizer(folder / "tokenizers/t5", corpus, rules)
    vary(folder / "tokenizers")
    write_json(folder / "prompts.json", texts)
    write_json(folder / "ids.json", reference_ids(folder / "tokenizers", texts, length, t5_length))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
