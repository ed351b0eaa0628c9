"""A fixed sample of damaged files: each is read, or refused in one line; kills and failing calls, a few of each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.faults import build_shim
from tests.fuzz.kinds import ROOT, names
from tests.fuzz.runner import run_case

CASES, SEED = 500, 0
SHARES = 4  # tests run in several processes


@pytest.mark.parametrize("share", range(SHARES))
def test_damaged_files_are_read_or_refused_in_one_line(share: int, tmp_path: Path) -> None:
    cases = list(enumerate(names(CASES)))[share::SHARES]
    faulty = {
        f"{kind} {number}": fault
        for number, kind in cases
        if (fault := run_case(kind, number, SEED, tmp_path / "case"))
    }
    assert not faulty


@pytest.mark.skipif(sys.platform != "linux", reason="forked children and a preloaded library")
@pytest.mark.parametrize("kind", ["kills", "calls"])
def test_outputs_are_absent_or_right_whatever_ends_a_run(kind: str, tmp_path: Path) -> None:
    if kind == "calls" and build_shim(tmp_path) is None:
        pytest.skip("no C compiler is here")
    command = [sys.executable, "-m", "tests.fuzz.faults", kind, "4", "0"]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
