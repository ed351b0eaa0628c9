"""Names of files as nobody should give them: one line of at most 400 characters, exit code 2, and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

Cli = Callable[..., Ran]
NO_HOME = "~no-such-user/a"
GIVEN: dict[str, dict[str, str]] = {
    "generate": {"--model": "flux-demo", "--size": "32", "--steps": "1"},
    "quantize": {"--model": "flux-demo", "-o": "out"},
    "plan": {"--model": "flux-demo"},
    "compare": {"--models": "flux-demo", "--prompts": "prompts.txt"},
    "bench": {"--model": "flux-demo"},
}
FLAGS = {
    "generate": ("--image", "--noise", "--mask", "--lora", "--prompt-file", "--from", "--model", "-o"),
    "quantize": ("--model", "--quant", "--lora", "--calibrate", "-o"),
    "plan": ("--model", "--references"),
    "compare": ("--models", "--prompts"),
    "bench": ("--model", "--references"),
}
CASES = [(command, flag) for command, flags in FLAGS.items() for flag in flags]


def given(command: str, flag: str, value: str) -> list[str]:
    prompt = ["a red circle"] if command == "generate" and flag not in ("--prompt-file", "--from") else []
    return [command, *prompt, *(word for pair in (GIVEN[command] | {flag: value}).items() for word in pair)]


def refused(ran: Ran, words: str = "") -> None:
    assert ran.code == 2, ran
    assert ran.out == "" and words in ran.err, ran
    assert all(len(line) <= 400 for line in ran.err.splitlines()), ran.err
    assert ran.err.splitlines()[-1].startswith("mlx-imagegen: ")
    assert not [path for path in Path().rglob("*") if path.name != "prompts.txt" and path.is_file()]


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_a_home_that_nobody_has_is_no_crash(command: str, flag: str, cli: Cli) -> None:
    Path("prompts.txt").write_text("a red circle")
    refused(cli(*given(command, flag, NO_HOME)))


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_an_empty_name_is_refused_and_means_no_folder(command: str, flag: str, cli: Cli) -> None:
    Path("prompts.txt").write_text("a red circle")
    refused(cli(*given(command, flag, "")))


def test_info_of_no_name(cli: Cli) -> None:
    refused(cli("info", NO_HOME), f"{NO_HOME} is not there")
    refused(cli("info", ""), "the name is empty")


@pytest.mark.parametrize("pattern", ["{prompt:9999999999}", "{seed:09999999999}", "{guidance:.9999999999f}"])
def test_a_pattern_that_asks_for_gigabytes_is_refused_at_once(pattern: str, cli: Cli) -> None:
    refused(cli(*given("generate", "-o", f"{pattern}.png")), "makes a name of more than 255 bytes")


def test_a_name_that_is_too_long_is_shortened(cli: Cli) -> None:
    refused(cli(*given("generate", "-o", "x" * 300 + ".png")), "File name too long")
    refused(cli(*given("plan", "--model", "y" * 5000)), "File name too long")


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ('{"prompt": "b", "steps": -1}', "given.jsonl, line 2: steps -1: give a whole number"),
        ('{"prompt": "b", "width": 7}', "given.jsonl, line 2: width 7: flux-demo needs a multiple of 16"),
        ('{"prompt": ""}', "given.jsonl, line 2: the prompt is empty"),
        ('{"prompt": "b", "image": "nowhere.png"}', "given.jsonl, line 2: image: nowhere.png is not there"),
    ],
)
def test_a_value_of_a_line_is_refused_with_the_line(job: str, words: str, cli: Cli) -> None:
    """And separators of lines that are none of JSON's stand within a prompt."""
    Path("given.jsonl").write_text(f'{{"prompt": "a\u2028b\x85c", "steps": 1}}\n{job}\n')
    ran = cli("generate", "--model", "flux-demo", "--prompt-file", "given.jsonl", "-o", "{index}.png")
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1, ran
    assert not list(Path().glob("*.png"))


@pytest.mark.parametrize("command", [("info",), ("generate", "a", "--image"), ("generate", "--from")])
def test_a_pipe_is_no_picture(command: tuple[str, ...], cli: Cli) -> None:
    """Nobody writes to it: opening it would wait for ever."""
    os.mkfifo("given.png")
    ran = cli(*command, "given.png")
    assert ran.code == 2 and "cannot be read as a picture (it is a pipe)" in ran.err, ran


def test_help_is_no_near_name(cli: Cli) -> None:
    ran = cli("download", "--halp")
    assert ran.code == 2 and "--help lists the options" in ran.err and "did you mean" not in ran.err
