"""The gated delta rule in chunks against itself token by token, in float64.

Of numbers up to 9; a chunk of steep decays adds up to logarithms of hundreds, of which float32 keeps 2e-5.
"""

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.text.gated_delta import CHUNK, gated_delta, unit_lower_inverse


def token_by_token(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One head's, [L, D]."""
    memory, out = np.zeros((k.shape[1], v.shape[1])), []
    for place in range(len(q)):
        memory = memory * np.exp(decay[place])
        memory = memory + np.outer(k[place], (v[place] - k[place] @ memory) * beta[place])
        out.append(q[place] @ memory)
    return np.stack(out), memory


@pytest.mark.parametrize("length", (1, 2, CHUNK, CHUNK + 1, 3 * CHUNK - 5))
def test_chunks_equal_single_tokens(length: int) -> None:
    draw = np.random.default_rng(length)
    q, k, v = draw.normal(size=(3, length, 8))
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    decay, beta = -draw.exponential(size=length) * draw.choice([0.01, 5], length), draw.uniform(size=length)
    before = length // 2  # what follows begins with the memory of what came before
    arrays = [mx.array(each, mx.float32)[None, None] for each in (q, k, v, decay, beta)]
    memory, outs = mx.zeros((1, 1, 8, 8)), []
    for part in (slice(0, before), slice(before, length)):
        if part.start < part.stop:
            out, memory = gated_delta(*(each[:, :, part] for each in arrays), memory)
            outs.append(out)
    expected, last = token_by_token(q, k, v, decay, beta)
    assert np.abs(np.concatenate([np.array(out[0, 0]) for out in outs]) - expected).max() < 1e-4
    assert np.abs(np.array(memory[0, 0]) - last).max() < 1e-4


def test_the_inverse_is_exact_where_powers_would_overflow() -> None:
    """Of all ones: its powers grow beyond float32's digits, its inverse has two diagonals."""
    inverse = np.array(unit_lower_inverse(mx.ones((2, CHUNK, CHUNK))))
    assert np.array_equal(inverse[1], np.eye(CHUNK) - np.eye(CHUNK, k=-1))
