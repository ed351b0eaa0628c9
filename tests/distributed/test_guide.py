"""What the guide to several Macs shows: the launcher and the command know every flag, and the errors are real ones."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "examples/guides/several-macs.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
LINES = [line.strip() for line in BLOCKS.splitlines() if line.strip()]
TOOLS = ("mlx.launch", "mlx.distributed_config")


def shown(tool: str) -> list[list[str]]:
    """The arguments of each line that runs it, up to the command that it starts."""
    lines = [shlex.split(line.partition(" -- ")[0]) for line in LINES if line.split()[0].endswith(tool)]
    return [arguments for _, *arguments in lines]


@pytest.mark.parametrize("tool", TOOLS)
def test_mlx_s_tools_know_the_flags(tool: str) -> None:
    path = Path(sys.executable).parent / tool
    known = subprocess.run([str(path), "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert len(shown(tool)) == 2
    for arguments in shown(tool):
        for flag in arguments:
            assert not flag.startswith("--") or re.search(rf"{flag}\b", known), flag


def test_the_commands_are_accepted(cli: Callable[..., Ran]) -> None:
    commands = [line.partition(" -- ")[2] for line in LINES if " -- " in line]
    assert len(commands) == 2
    for command in commands:
        name, *arguments = shlex.split(command)
        ran = cli(*arguments, "--no-such-flag")
        assert name.endswith("bin/mlx-imagegen") and ran.code == 2
        assert "unrecognized arguments: --no-such-flag" in ran.err, ran.err


def test_the_lines_of_the_table_are_what_ranks_print() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mlx_imagegen/distributed").glob("*.py"))
    lines = re.findall(r"^\| `(.*?)` \|", TEXT.partition("## When it does not start")[2], re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        words = re.sub(r"rank \d( \(\w+\))? ", "", line).split("...")[0].split(",")[0]
        words = words.replace("mlx-imagegen", "").replace("float16", "{value}").replace("has a d", "a d").strip()
        assert words in source, line
