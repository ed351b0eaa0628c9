"""Greedy writing: after each token the likeliest next one.

In: the logits after a prompt, a function from a token to the logits after it, and what a checkpoint's folder says of
writing. Out: token ids.
Must not know: models, tokenizers, what is written.
"""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError
from ..loading.config import Range, read_json

PENALTIES = Range(0.1, 10)
OnToken = Callable[[int], None]  # how many are written


def greedy(
    logits: mx.array,
    following: Callable[[int], mx.array],
    stops: Collection[int],
    limit: int,
    on_token: OnToken | None = None,
    penalty: float = 1.0,
    asked: Sequence[int] = (),
) -> list[int]:
    """Up to the first of `stops`, which is left out, or `limit` tokens. `following`: called with every token.
    `penalty`: what the logits of tokens in the question (`asked`) or the answer are divided by, or, where they are
    negative, multiplied."""
    ids, seen = list[int](), set(asked)
    while len(ids) < limit:
        scores = logits if penalty == 1 else _penalized(logits, penalty, seen)
        token = int(mx.argmax(scores))
        if not math.isfinite(float(scores[token])):
            raise CheckpointError(
                "the words came out as numbers that are no scores (NaN or infinite): the language model's weights are "
                "damaged. Download them again."
            )
        if token in stops:
            break
        ids.append(token)
        seen.add(token)
        if on_token:
            on_token(len(ids))
        if len(ids) < limit:
            logits = following(token)
    return ids


def repetition_penalty(folder: Path) -> float:
    """On tokens that stand in the text already; what transformers reads next to the weights."""
    path = folder / "generation_config.json"
    value = read_json(path).get("repetition_penalty") if path.is_file() else None
    sound = isinstance(value, int | float) and PENALTIES.low <= value <= PENALTIES.high
    return float(value) if sound else 1.0  # type: ignore[arg-type]


def _penalized(logits: mx.array, penalty: float, tokens: Collection[int]) -> mx.array:
    """In float32, as in transformers: in bf16 it would make neighbours equal."""
    places, logits = mx.array(list(tokens)), mx.array(logits, mx.float32)  # a copy
    found = logits[places]
    logits[places] = mx.where(found < 0, found * penalty, found / penalty)
    return logits
