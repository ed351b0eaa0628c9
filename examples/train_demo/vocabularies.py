"""Small vocabularies of the real kinds: Qwen's byte-level BPE, CLIP's BPE with word ends, T5's unigram model.

In: the captions of the small world. Out: the files a real checkpoint has in its tokenizer folders, so that
`transformers` and the library load them in the ordinary way. The first two fall back on bytes, T5 on <unk>, as the
real ones do: any text encodes.
"""

from __future__ import annotations

import collections
import json
import math
import re
from pathlib import Path

import numpy as np
import scenes
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# The words before a prompt in Qwen-Image's template: the pipeline drops exactly 34 tokens, so each has to be one token.
QWEN_IMAGE_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
OPEN_WORDS = (
    "an", "and", "two", "one", "with", "next", "big", "grey", "circles", "squares", "triangles", "stars",
    "A", "An", "Two", "One", "In", "On", "At",
)  # fmt: skip
OPEN_WORD_SCORE = -6.0
HIDREAM_SPECIAL = ("<|boi_token|>", "<|bor_token|>", "<|eor_token|>", "<|bot_token|>", "<|tms_token|>")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def corpus(chinese: bool) -> list[str]:
    """Captions enough for every word of the world to become one token."""
    rng = np.random.default_rng(0)
    drawn = scenes.sample(rng, 3000, held_out=False)
    texts = [scenes.varied_caption(scene, rng) for scene in drawn]
    texts += [" in outline style", "outlined "] * 200
    if chinese:  # word by word: without spaces, whole runs of a caption would become one token
        texts += [*scenes.CHINESE.values(), "一个", "在", "，", "背景上"] * 500
    return texts


def write_qwen(folder: Path, hidream: bool) -> Tokenizer:
    """Qwen's tokenizer: vocab.json, merges.txt and added_tokens.json; HiDream-O1 has tokenizer.json as well."""
    template = re.split(r"<\|\w+\|>|{}", QWEN_IMAGE_TEMPLATE)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=100,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(chinese=not hidream) + template * 1000, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    special = QWEN_SPECIAL + (HIDREAM_SPECIAL if hidream else ())
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    _write_qwen_config(folder, tokenizer, special)
    if hidream:
        tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def _write_qwen_config(folder: Path, tokenizer: Tokenizer, special: tuple[str, ...]) -> None:
    ids = {word: tokenizer.token_to_id(word) for word in special}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": word, **flags} for word, number in ids.items()},
        "additional_special_tokens": list(special[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "added_tokens.json", ids)
    roles = {"additional_special_tokens": list(special[1:]), "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "special_tokens_map.json", roles)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_clip(folder: Path) -> None:
    """CLIP's tokenizer: vocab.json and merges.txt, no tokenizer.json; its last token is the end of the text."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=100, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=letters
    )
    tokenizer.train_from_iterator(corpus(chinese=False), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(dict.fromkeys(words))})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "add_prefix_space": False,
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }
    write_json(folder / "tokenizer_config.json", config)
    roles = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    write_json(folder / "special_tokens_map.json", roles)


def write_t5(folder: Path, max_length: int) -> None:
    """T5's tokenizer: spiece.model (unigram) and the tokenizer.json made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = t5_pieces()
    _write_sentencepiece(folder / "spiece.model", pieces)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁")
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "clean_up_tokenization_spaces": True,
        "extra_ids": 0,
        "model_max_length": max_length,
        "tokenizer_class": "T5Tokenizer",
        **roles,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", roles)


def t5_pieces() -> list[tuple[str, float]]:
    """Every word of the world as one piece, then single characters as the dear last resort."""
    texts = [*corpus(chinese=False), *[","] * 200]
    counts = collections.Counter(word for text in texts for word in text.split())
    total = sum(counts.values())
    words = [("▁" * (word != ",") + word, math.log(count / total)) for word, count in counts.most_common()]
    known = {word for word, _ in words}
    letters = [(chr(code), -12.0 - code / 1000) for code in range(33, 127)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0), *words] + [
        pair for pair in letters if pair[0] not in known
    ]


def extend_t5(folder: Path) -> None:
    """Append the words of open captions to T5's pieces: no id moves, and a caption fits into its few tokens."""
    from sentencepiece import sentencepiece_model_pb2 as format_

    proto = format_.ModelProto.FromString((folder / "spiece.model").read_bytes())
    known = {piece.piece for piece in proto.pieces}
    new = [("▁" + word, OPEN_WORD_SCORE) for word in OPEN_WORDS if "▁" + word not in known]
    for piece, score in new:
        proto.pieces.add(piece=piece, score=score, type=1)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] += [[piece, score] for piece, score in new]
    Tokenizer.from_str(json.dumps(tokenizer)).save(str(folder / "tokenizer.json"))


def _write_sentencepiece(path: Path, pieces: list[tuple[str, float]]) -> None:
    from sentencepiece import sentencepiece_model_pb2 as format_

    proto = format_.ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, control, unknown; everything else is normal
    for piece, score in pieces:
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size = 1, len(pieces)
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = 0, 1, 2, -1
    spec.pad_piece, spec.eos_piece, spec.unk_piece = "<pad>", "</s>", "<unk>"
    proto.normalizer_spec.name = "identity"
    path.write_bytes(proto.SerializeToString())


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
