"""Freshly drawn models: scripts of tests/references, run with another seed each time.

The seed is in the folder's name, and so in every failure's report.
"""

import secrets
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.families.flux1.test_tools import assembled

REFERENCES = Path(__file__).parents[1] / "references"


def fresh_seed() -> int:
    return secrets.randbelow(10**6)


def run_script(name: str, *arguments: object) -> None:
    command = [sys.executable, REFERENCES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{name} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def draw_kind(script: str, place: Path, kind: str, *options: object) -> Path:
    seed = fresh_seed()
    folder = place / f"{kind}-{seed}"
    run_script(script, folder, "--kind", kind, "--seed", seed, *options)
    return folder


def draw_parity(script: str, place: Path, kind: str, odd: bool) -> Path:
    """By scripts that draw one kind for even seeds, and another one for odd ones."""
    seed = 2 * fresh_seed() + odd
    folder = place / f"{kind}-{seed}"
    run_script(script, folder, "--seed", seed)
    return folder


def draw_additions(script: str, place: Path, base: str, kinds: Iterable[str]) -> Path:
    """Of each kind a model that adds something to `base`, in a folder of the kind's name."""
    seed = 2 * fresh_seed()
    folder = place / f"seed-{seed}"
    run_script("inpaint.py", folder, "--draw", base, "--ways", "--seed", seed)
    run_script(script, folder / "drawn", folder / base, "--seed", seed)
    for kind in kinds:
        assembled(folder / "drawn" / kind, folder / base, folder / kind)
    return folder


def draw_adapters(script: str, place: Path, kinds: Iterable[str]) -> Path:
    """Of each kind a FLUX.1, with an image adapter next to it, in a folder of the kind's name."""
    seed = 2 * fresh_seed()
    folder = place / f"seed-{seed}"
    for number, kind in enumerate(kinds, seed):  # inpaint.py draws one kind for even seeds, and the other for odd ones
        run_script("inpaint.py", folder / "bases" / kind, "--draw", "flux", "--ways", "--seed", number)
        run_script(script, folder / "drawn" / kind, folder / "bases" / kind / "flux", "--seed", number)
        assembled(folder / "drawn" / kind, folder / "bases" / kind / "flux", folder / kind)
    return folder
