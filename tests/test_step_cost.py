"""benchmarks/step_cost.py: what a step of each family launches and moves on a GPU does not grow unnoticed."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Family -> launches, then GB outside products and attention, dense and packed. A change that lowers one by more than
# 2 % lowers it here as well.
COSTS = {
    "flux1": {"dense": (994, 42.2), "packed": (1187, 62.7)},
    "flux2": {"dense": (356, 18.4), "packed": (376, 23.0)},
    "flux3": {"dense": (396, 24.7), "packed": (396, 24.7)},
    "qwen_image": {"dense": (1797, 49.3), "packed": (2040, 58.5)},
    "qwen_image_21": {"dense": (547, 35.6), "packed": (547, 35.6)},
    "z_image": {"dense": (487, 32.9), "packed": (489, 33.0)},
    "hidream_o1": {"dense": (846, 12.5), "packed": (855, 12.4)},
}
# FLUX.1's own arithmetic: weights that a token meets, and two products of attention over 4608 tokens.
FLUX_BLOCKS = 19 * (4096 * 12 + 512 * 12) + 38 * 4608 * 12  # products of 3072 x 3072 numbers a token
FLUX_ENDS = 4096 * 64 * 3072 * 2 + 512 * 4096 * 3072
FLUX_ATTENTION = 57 * 4 * 4608**2 * 3072


@cache
def counted() -> dict[str, dict[str, dict[str, Any]]]:
    command = [sys.executable, str(BENCHMARKS / "step_cost.py"), "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    out: dict[str, dict[str, dict[str, Any]]] = json.loads(shown.stdout)
    return out


@pytest.mark.parametrize("family", COSTS)
@pytest.mark.parametrize("way", ["dense", "packed"])
def test_a_step_launches_and_moves_no_more_than_before(family: str, way: str) -> None:
    cost, (launches, gigabytes) = counted()[family][way], COSTS[family][way]
    assert 0.98 * launches <= cost["launches"] <= launches
    assert 0.98 * gigabytes <= cost["bytes"] / 1e9 <= 1.005 * gigabytes


def test_every_family_of_the_benchmark_is_bounded() -> None:
    assert set(counted()) == set(COSTS)


@pytest.mark.parametrize("way", ["dense", "packed"])
def test_the_arithmetic_of_flux_is_counted_in_full(way: str) -> None:
    cost = counted()["flux1"][way]
    assert cost["product_flops"] == 2 * (FLUX_BLOCKS * 3072**2 + FLUX_ENDS)
    assert cost["attention_flops"] == FLUX_ATTENTION


def test_the_rules_for_copies_are_metals() -> None:
    """What views, norms of transposed rows, and complex pairs of them cost, by hand."""
    code = """
import json, mlx_graph
mlx_graph.pretend_gpu()
import mlx.core as mx
x = mx.zeros((1, 8, 64), mx.float32)
heads = lambda x: x.reshape(1, 8, 4, 16).transpose(0, 2, 1, 3)
cases = {
    "view": lambda x: heads(x)[:, 1:],
    "norm": lambda x: mx.fast.rms_norm(x, None, 1e-6),
    "norm of heads": lambda x: mx.fast.rms_norm(heads(x), None, 1e-6),
    "pairs": lambda x: x.view(mx.complex64),
    "pairs of heads": lambda x: heads(x).view(mx.complex64),
    "concatenate": lambda x: mx.concatenate([x, x], axis=1),
    "broadcast": lambda x: x * mx.zeros((64,)),
    "compiled": lambda x: mx.compile(lambda a, b: mx.exp(a) * b)(x, x),
    "columns of a weight": lambda x: x[:, :, :8] @ x[0, :, :8].T,
    "every other column": lambda x: x[:, :, :4] @ x[0, :, ::16].T,
    "columns of a packed weight": lambda x: mx.quantized_matmul(
        x[:, :, :32], mx.zeros((8, 16), mx.uint32)[:, :4], mx.zeros((8, 4))[:, :1], mx.zeros((8, 4))[:, :1], bits=4,
        group_size=32),
    "attention out": lambda x: mx.fast.scaled_dot_product_attention(heads(x), heads(x), heads(x), scale=1.0)
        .transpose(0, 2, 1, 3).reshape(1, 8, 64),
}
print(json.dumps({name: [(c := mlx_graph.count(f, [x])).launches, c.bytes] for name, f in cases.items()}))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=BENCHMARKS / "peers"
    )
    size = 8 * 64 * 4
    assert json.loads(shown.stdout) == {
        "view": [0, 0],
        "norm": [1, 2 * size],
        "norm of heads": [2, 4 * size],
        "pairs": [0, 0],
        "pairs of heads": [1, 2 * size],
        "concatenate": [2, 4 * size],
        "broadcast": [1, 2 * size + 64 * 4],
        "compiled": [1, 3 * size],
        "columns of a weight": [1, 0],
        "every other column": [2, 2 * 8 * 4 * 4],
        "columns of a packed weight": [4, 2 * (8 * 4 * 4 + 2 * 8 * 4)],
        "attention out": [1, 0],
    }
