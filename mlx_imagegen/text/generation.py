"""Greedy writing: after each token the likeliest next one.

In: the logits after a prompt, and a function from a token to the logits after it. Out: token ids.
Must not know: models, tokenizers, what is written.
"""

from collections.abc import Callable, Collection, Sequence

import mlx.core as mx

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
    ids: list[int] = []
    while len(ids) < limit:
        token = int(mx.argmax(logits if penalty == 1 else _penalized(logits, penalty, {*asked, *ids})))
        if token in stops:
            break
        ids.append(token)
        if on_token:
            on_token(len(ids))
        if len(ids) < limit:
            logits = following(token)
    return ids


def _penalized(logits: mx.array, penalty: float, tokens: Collection[int]) -> mx.array:
    places, logits = mx.array(list(tokens)), mx.array(logits)  # a copy
    found = logits[places]
    logits[places] = mx.where(found < 0, found * penalty, found / penalty)
    return logits
