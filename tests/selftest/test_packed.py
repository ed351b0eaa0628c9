"""Packed products: every packing in use is tried on the shapes that matter, and a wrong kernel is found."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen.layers.linear import PACKED, Packing
from mlx_imagegen.selftest import packed
from mlx_imagegen.selftest.packed import MANY, PRODUCT, packed_checks, packings_in_use, product_checks, shapes

SIX = Packing(6, 64)


def test_the_recipes_packings_are_all_tested() -> None:
    found = packings_in_use()
    assert {(6, 64), (6, 32), (8, 64), (4, 64)} <= {(each.bits, each.group_size) for each in found}
    assert {(bits, size) for bits in (4, 5, 6, 8) for size in (32, 64, 128)} <= {
        (each.bits, each.group_size) for each in found if each.mode == "affine"
    }
    for packing in found:
        tried = shapes(packing)
        assert any(tokens > MANY for tokens, _, _ in tried) and any(rows > MANY for _, rows, _ in tried)
        assert any(tokens == 1 for tokens, _, _ in tried)
    assert any(columns % 64 for packing in found for _, _, columns in shapes(packing) if packing.group_size == 32)


def test_this_machine_s_kernels_are_right() -> None:
    checks = [each for each in packed_checks([SIX, Packing(4, 32)]) if each.operation == PRODUCT]
    assert len(checks) == 2 * (2 * len(shapes(SIX)) + 1)
    for each in checks:
        assert each.right and (each.error > 0 or PACKED not in each.case), str(each)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda out: mx.concatenate([out[:MANY], mx.zeros_like(out[MANY:])]),  # rows above 32,768 are not computed
        lambda out: mx.concatenate([out[:-1], out[-1:] * 1.1]),  # one row in 32,777 is 10% off
        lambda out: out * mx.array(math.nan),
    ],
)
def test_a_wrong_kernel_is_found(wrong: Callable[[mx.array], mx.array], monkeypatch: pytest.MonkeyPatch) -> None:
    real = packed.packed_matmul

    def product(*given: Any) -> mx.array:
        out = real(*given)
        return wrong(out) if given[-1] == PACKED else out

    monkeypatch.setattr(packed, "packed_matmul", product)
    broken, dense = product_checks(SIX, MANY + 9, 64, 128)
    assert not broken.right and dense.right
    assert "6 bits in groups of 64" in str(broken) and "[32777, 128]" in str(broken)
