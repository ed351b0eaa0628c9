"""The drawn weights are the same bits everywhere, and tests/data stays small because of them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.draw import STORED, drawn_data
from tests.references.weight_descriptions import SUFFIX, Drawn, read, redraw, renamed, tensor, unit

DESCRIPTIONS = sorted(STORED.rglob(f"*{SUFFIX}"))
LIMIT_BYTES = 6_000_000
# PCG64's first three for the seed 7 and the CRC of "name", as NumPy 2.4 drew them on Linux.
RAW = (15385235851040434991, 7697467049762853865, 499471999512159183)


def weights_of(description: Path) -> Path:
    return drawn_data() / description.relative_to(STORED).with_name(
        description.name.removesuffix(SUFFIX) + ".safetensors"
    )


def test_the_bits_are_known() -> None:
    """From the raw integers by hand: each is four integers of 16 bits, which are added."""
    sums = [sum((raw >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) for raw in RAW]
    assert unit(7, "name", (3,)).tolist() == [(each - 131070) / ((2**32 - 1) / 3) ** 0.5 for each in sums]


def test_numbers_have_the_mean_and_spread_asked_for() -> None:
    numbers = tensor(1, Drawn((400, 500), 1.0, 0.2, "x"))
    assert numbers.dtype == np.float32 and abs(numbers.mean() - 1) < 0.002 and abs(numbers.std() / 0.2 - 1) < 0.01
    assert not np.array_equal(numbers, tensor(2, Drawn((400, 500), 1.0, 0.2, "x")))
    assert not np.array_equal(numbers, tensor(1, Drawn((400, 500), 1.0, 0.2, "y")))


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda path: str(path.relative_to(STORED)))
def test_every_description_is_drawn(description: Path) -> None:
    seed, drawn, _ = read(description)
    tensors = load_file(weights_of(description))
    assert set(tensors) == set(drawn) and len(tensors) > 5
    for name, each in drawn.items():
        assert np.array_equal(tensors[name], tensor(seed, each)), name


def test_a_file_is_redrawn_by_its_description(tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float32)}, tmp_path / "x.safetensors")
    redraw(tmp_path / "x.safetensors", lambda name, shape: (float(name == "b"), 1 / len(shape)), seed=5)
    first = load_file(tmp_path / "x.safetensors")
    assert np.array_equal(first["a.weight"], (0.5 * unit(5, "a.weight", (3, 4))).astype(np.float32))
    assert np.array_equal(first["b"], (1 + unit(5, "b", (5,))).astype(np.float32))
    renamed(tmp_path / "x.safetensors", tmp_path / "y.safetensors", {"c.weight": "a.weight"})
    assert np.array_equal(load_file(tmp_path / "y.safetensors")["c.weight"], first["a.weight"])


def test_the_stored_data_is_small() -> None:
    """What git would store; weights that a reference script left there are ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "."]
    ran = subprocess.run(command, cwd=STORED, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip("not a git checkout")
    paths = [STORED / name for name in ran.stdout.split("\0") if name]
    assert len(paths) > 100 and sum(path.stat().st_size for path in paths if path.exists()) <= LIMIT_BYTES
