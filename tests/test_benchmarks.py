"""benchmarks/run.py finds every script next to it and runs it with what it takes itself."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
WITH_ARGUMENTS = (
    "demo",
    "lora_merge",
    "quant_convert",
    "quant_quality",
    "quant_resident",
    "qwen_fold",
    "step_cache",
    "step_cost",
)


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FOLDER / "run.py"), *arguments], capture_output=True, text=True)


def test_all_that_can_be_run_is_listed() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"run", "turns"}
    for listing, code in ((ran(), 0), (ran("--help"), 0), (ran("nothing"), 2)):
        assert listing.returncode == code and {line.split()[0] for line in listing.stdout.splitlines()} == scripts


def test_each_does_something_when_it_is_run() -> None:
    scripts = [path for path in FOLDER.glob("*.py") if path.stem != "turns"]  # what the others share
    assert not [path.name for path in scripts if '__name__ == "__main__"' not in path.read_text()]


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_its_own_arguments_are_passed_on(name: str) -> None:
    shown = ran(name, "--help")
    assert shown.returncode == 0 and f"usage: {name}" in shown.stdout, shown.stderr
