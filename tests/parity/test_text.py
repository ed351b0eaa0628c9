"""Tokenizers, CLIP and T5 against the installed transformers, on freshly drawn vocabularies, configs and weights."""

from pathlib import Path

import pytest

from tests.parity.draws import run_script
from tests.text.test_clip import check_clip
from tests.text.test_t5 import check_buckets, check_t5
from tests.text.test_tokenizer import check_ids


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    run_script("flux_text.py", tmp_path, "--seed", seed)
    check_ids(tmp_path)
    for name in ("clip", "clip_saved"):
        check_clip(tmp_path, name)
    for name in ("t5", "t5_saved"):
        check_t5(tmp_path, name)
    check_buckets(tmp_path)
