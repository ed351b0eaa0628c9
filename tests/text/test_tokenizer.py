"""Tokenizers against transformers' ids, stored in tests/data/flux_text (tests/references/flux_text.py)."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_imagegen.errors import ConfigError, MissingFileError, RequestError
from mlx_imagegen.text.tokenizer import Tokenizer, clip_tokenizer, qwen_tokenizer, t5_tokenizer
from mlx_imagegen.text.vocabulary import special
from tests.draw import drawn_data

DATA = drawn_data() / "flux_text"
KINDS = {"clip": clip_tokenizer, "t5": t5_tokenizer, "qwen": qwen_tokenizer}
FILES = {
    "clip": ("vocab.json", "merges.txt"),
    "t5": ("tokenizer.json", "spiece.model"),
    "qwen": ("vocab.json", "merges.txt"),
}
ENDS = {"clip": "<|endoftext|>", "t5": "</s>"}


def stored(kind: str) -> Tokenizer:
    return KINDS[kind](DATA / "tokenizers" / kind)


@pytest.fixture
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tokenizer's folder, to be damaged."""
    return Path(shutil.copytree(DATA / "tokenizers" / request.param, tmp_path / request.param))


def check_ids(folder: Path) -> None:
    """Every string, in every kind of folder: as many prompts as the issue asks for, none with another id."""
    prompts, want = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("prompts.json", "ids.json"))
    assert len(prompts) >= 200
    for name, entry in want.items():
        entry = want[entry] if isinstance(entry, str) else entry
        tokenizer = KINDS[name.partition("-")[0]](folder / "tokenizers" / name)
        for prompt, ids in zip(prompts, entry["ids"], strict=True):
            padding = [entry["pad"]] * ((entry["length"] or 0) - len(ids))
            length = None if name.startswith("clip") else entry["length"]  # CLIP's stands in its own file
            assert tokenizer.encode(prompt, length).ids == ids + padding, (name, prompt)


def test_ids_are_those_of_transformers() -> None:
    check_ids(DATA)


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_padding_fills_the_length(kind: str) -> None:
    short = stored(kind).encode("a cat", 16)
    assert len(short.ids) == 16 and short.cut == ""
    assert short.ids[-1] == stored(kind).id_of({"clip": "<|endoftext|>", "t5": "<pad>"}[kind])


def test_qwen_is_neither_padded_nor_framed() -> None:
    tokenizer = stored("qwen")
    assert tokenizer.encode("", 16).ids == []
    assert tokenizer.encode("<|im_end|>").ids == [tokenizer.id_of("<|im_end|>")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["cat", "猫", "café", "😀"])
def test_what_is_cut_off_is_told(kind: str, word: str) -> None:
    """With room for the first n words exactly, the cut is all the others, as they were written."""
    tokenizer = stored(kind)
    words = [f"{word}{index}" for index in range(20)]
    text = "  ".join(words) + "\n"
    assert tokenizer.encode(text, 2000).cut == ""
    for kept in range(1, 20):
        ids = tokenizer.encode("  ".join(words[:kept]) + (" " if kind == "qwen" else ""), 2000).ids
        if kind != "qwen":
            ids = ids[: ids.index(tokenizer.id_of(ENDS[kind])) + 1]
        shortened = tokenizer.encode(text, len(ids))
        assert shortened.cut == "  ".join(words[kept:])
        assert shortened.ids == ids


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(RequestError, match="leaves no room"):
        stored("clip").encode("a cat", 1)


def test_half_a_character_is_refused() -> None:
    """And the place is shown, wherever it stands in a long prompt."""
    with pytest.raises(RequestError, match=r"surrogate pair, in .*a cat \\ud83d on a mat"):
        stored("t5").encode("word " * 50 + "a cat \ud83d on a mat", 16)


@pytest.mark.parametrize(("copy", "kind"), [(kind, kind) for kind in KINDS], indirect=["copy"])
def test_missing_files_are_named(copy: Path, kind: str) -> None:
    for name in FILES[kind]:
        (copy / name).unlink()
    with pytest.raises(MissingFileError) as caught:
        KINDS[kind](copy)
    assert str(copy) in str(caught.value) and all(name in str(caught.value) for name in FILES[kind])
    assert "download" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_folder_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere is not there"):
        KINDS[kind](tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("copy", "kind", "name"),
    [
        ("qwen", "qwen", "vocab.json"),
        ("t5-bare", "t5", "spiece.model"),
        ("t5", "t5", "tokenizer.json"),
        ("qwen-saved", "qwen", "tokenizer.json"),
        ("clip", "clip", "tokenizer_config.json"),
    ],
    indirect=["copy"],
)
def test_a_file_cut_short_is_named(copy: Path, kind: str, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError) as caught:
        KINDS[kind](copy)
    assert name in str(caught.value) and "download" in str(caught.value)


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_merges_cut_within_a_line_are_named(copy: Path) -> None:
    path = copy / "merges.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index(" ", len(text) // 2)], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"merges\.txt .*download"):
        clip_tokenizer(copy)


@pytest.mark.parametrize("copy", ["t5-bare"], indirect=True)
def test_every_cut_of_a_sentencepiece_model_is_seen(copy: Path) -> None:
    """At any byte: an error of ours, or (between two pieces) a shorter model that cannot name its tokens."""
    path = copy / "spiece.model"
    data = path.read_bytes()
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        try:
            t5_tokenizer(copy)
        except ConfigError:
            continue
        pytest.fail(f"{size} of {len(data)} bytes were taken for a whole model")


@pytest.mark.parametrize("copy", ["clip-saved"], indirect=True)
def test_another_models_tokenizer_is_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match="BPE model where a whole Unigram"):
        t5_tokenizer(copy)


def change(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_clip_needs_its_length(copy: Path) -> None:
    change(copy, model_max_length=1e30)
    with pytest.raises(ConfigError, match="model_max_length"):
        clip_tokenizer(copy)


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_a_role_left_empty_is_the_models_own(copy: Path) -> None:
    change(copy, pad_token=None)
    assert clip_tokenizer(copy).encode("a cat") == stored("clip").encode("a cat")


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_a_role_that_is_no_token_is_named(copy: Path) -> None:
    change(copy, pad_token=["<|endoftext|>"])
    with pytest.raises(ConfigError, match="no token"):
        clip_tokenizer(copy)


@pytest.mark.parametrize("copy", ["t5"], indirect=True)
def test_a_count_that_is_no_number_is_named(copy: Path) -> None:
    change(copy, extra_ids="100")
    with pytest.raises(ConfigError, match="extra_ids is '100'"):
        t5_tokenizer(copy)


def test_a_role_without_flags_is_matched_in_the_text_as_typed() -> None:
    assert not special({"content": "<|endoftext|>"}).normalized


@pytest.mark.parametrize("copy", ["qwen"], indirect=True)
def test_added_tokens_of_another_vocabulary_are_refused(copy: Path) -> None:
    added = json.loads((copy / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    change(copy, added_tokens_decoder={str(int(index) + 7): entry for index, entry in added.items()})
    with pytest.raises(ConfigError, match="different models"):
        qwen_tokenizer(copy)


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_a_list_of_merges_that_was_cut_is_noticed(copy: Path) -> None:
    (copy / "tokenizer.json").unlink(missing_ok=True)
    lines = (copy / "merges.txt").read_text().splitlines(keepends=True)
    (copy / "merges.txt").write_text("".join(lines[:-5]))
    with pytest.raises(ConfigError, match="no merge makes the token"):
        clip_tokenizer(copy)


@pytest.mark.parametrize("copy", ["clip"], indirect=True)
def test_text_does_not_stand_for_other_kinds(copy: Path) -> None:
    for changes in ({"pad_token": 5}, {"pad_token": {"content": "<|endoftext|>", "lstrip": "false"}}):
        change(copy, **changes)
        with pytest.raises(ConfigError):
            clip_tokenizer(copy)
