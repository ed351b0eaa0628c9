"""Greedy writing: what a penalty on repetitions makes of the logits."""

import math
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.text.generation import greedy, repetition_penalty


def test_a_penalty_is_applied_in_float32() -> None:
    """1 / 1.05 is 0.9524, which bf16 rounds to the other's 0.9531."""
    logits = mx.array([1.0, 0.953125], mx.bfloat16)
    assert greedy(logits, lambda _: logits, (), 1, penalty=1.05, asked=[0]) == [1]
    assert logits.tolist() == [1.0, 0.953125]


@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.nan] * 2, [0.0, math.inf]])
def test_damaged_weights_write_nothing(logits: list[float]) -> None:
    with pytest.raises(CheckpointError, match="weights are damaged"):
        greedy(mx.array(logits), lambda _: mx.array(logits), (), 2)


@pytest.mark.parametrize(
    ("text", "expected"), [('{"repetition_penalty": 1.05}', 1.05), ('{"repetition_penalty": 0}', 1)]
)
def test_a_penalty_is_read_next_to_the_weights(text: str, expected: float, tmp_path: Path) -> None:
    assert repetition_penalty(tmp_path) == 1
    (tmp_path / "generation_config.json").write_text(text)
    assert repetition_penalty(tmp_path) == expected
