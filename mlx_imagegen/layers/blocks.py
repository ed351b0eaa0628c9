"""What stands between a transformer's first block and the others.

A transformer gives what its first block made of the picture's tokens, and a function that runs the other blocks on it;
whoever is in between may predict what that function would give (families/step_cache.py).
"""

from collections.abc import Callable

import mlx.core as mx

# (the picture's tokens before the first block, after it, the other blocks) -> the tokens after the last block
AfterFirstBlock = Callable[[mx.array, mx.array, Callable[[], mx.array]], mx.array]


def run_all(before: mx.array, after: mx.array, others: Callable[[], mx.array]) -> mx.array:
    return others()
