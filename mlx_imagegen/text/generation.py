"""Greedy writing: after each token the likeliest next one.

In: the logits after a prompt, and a function from a token to the logits after it. Out: token ids.
Must not know: models, tokenizers, what is written.
"""

from collections.abc import Callable, Collection

import mlx.core as mx

OnToken = Callable[[int], None]  # how many are written


def greedy(
    logits: mx.array,
    following: Callable[[int], mx.array],
    stops: Collection[int],
    limit: int,
    on_token: OnToken | None = None,
) -> list[int]:
    """Up to the first of `stops`, which is left out, or `limit` tokens. `following`: called with every token."""
    ids: list[int] = []
    while len(ids) < limit:
        token = int(mx.argmax(logits))
        if token in stops:
            break
        ids.append(token)
        if on_token:
            on_token(len(ids))
        if len(ids) < limit:
            logits = following(token)
    return ids
