"""Qwen's tokenizers in the package: the published files, by their sizes, and what transformers makes of them."""

import json
from pathlib import Path

import pytest

from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.hub.tokenizer_data import write_tokenizer
from mlx_imagegen.text.tokenizer import qwen_tokenizer

# Of tokenizer/ in Qwen/Qwen-Image.
PUBLISHED_BYTES = {"vocab.json": 3_383_407, "merges.txt": 1_671_853, "tokenizer_config.json": 4_686}
PROMPT = "Ein Leuchtturm, 灯台 & a café at 19:05 — don't «blink» 🙂\n\n  twice"


def test_the_files_are_as_large_as_the_published_ones(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "qwen2")
    assert {name: (tmp_path / "tokenizer" / name).stat().st_size for name in PUBLISHED_BYTES} == PUBLISHED_BYTES


@pytest.mark.parametrize(("name", "last"), [("qwen2", "<|file_sep|>"), ("qwen3", "</think>")])
def test_added_tokens_follow_the_vocabulary(tmp_path: Path, name: str, last: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", name)
    tokenizer = qwen_tokenizer(tmp_path / "tokenizer")
    assert (tokenizer.id_of("<|endoftext|>"), tokenizer.id_of("<|im_start|>")) == (151_643, 151_644)
    assert tokenizer.id_of("<|image_pad|>") == 151_655
    assert tokenizer.encode("Hello, world!").ids == [9707, 11, 1879, 0]
    assert tokenizer.id_of(last) == (151_664 if name == "qwen2" else 151_668)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_ids_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import Qwen2Tokenizer

    write_tokenizer(tmp_path / "tokenizer", name)
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path / "tokenizer")
    ours = qwen_tokenizer(tmp_path / "tokenizer")
    for text in (PROMPT, f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n", "<think>a</think>"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_the_package_grows_by_less_than_3_mb() -> None:
    import zlib

    files = [path for path in (data_folder("weights") / "tokenizers").iterdir() if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 10**6
    assert json.loads((data_folder("weights") / "tokenizers/qwen2.json").read_text())["merges"] == "qwen.merges.txt"
