"""What the shells complete, asked of the shells themselves where they are installed."""

import shutil
import subprocess
from collections.abc import Callable

import pytest
from conftest import Ran

Cli = Callable[..., Ran]
CASES = [
    (("do",), {"download", "doctor"}),
    (("models", "--c"), {"--cached", "--comfy"}),
    (("generate", "--model", "flux-sc"), {"flux-schnell"}),
    (("download", "flux-sc"), {"flux-schnell"}),
    (("--preview-e",), {"--preview-every"}),
]


@pytest.mark.parametrize(("words", "expected"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_bash_completes(words: tuple[str, ...], expected: set[str], cli: Cli) -> None:
    line = " ".join(f"'{word}'" for word in ("mlx-imagegen", *words))
    script = f"{cli('completions', 'bash').out}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _mlx_imagegen\n"
    assert set(shell("bash", script + 'printf "%s\\n" "${COMPREPLY[@]}"').split()) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("words", "expected"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_fish_completes(words: tuple[str, ...], expected: set[str], cli: Cli) -> None:
    line = " ".join(("mlx-imagegen", *words))
    found = shell("fish", f"{cli('completions', 'fish').out}\ncomplete -C '{line}'")
    assert {row.split("\t")[0] for row in found.splitlines()} == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(cli: Cli) -> None:
    script = cli("completions", "zsh").out
    assert shell("zsh", f"{script}\nprint $+functions[_mlx_imagegen] $_comps[mlx-imagegen]") == "1 _mlx_imagegen\n"
    assert "'download:get a model" in script and "--preview-every" in script


def test_another_shell_is_refused(cli: Cli) -> None:
    ran = cli("completions", "tcsh")
    assert ran.code == 2 and "'tcsh'" in ran.err and "'bash', 'zsh', 'fish'" in ran.err


def shell(name: str, script: str) -> str:
    options = {"bash": ["--norc"], "fish": ["--no-config"], "zsh": ["-f"]}[name]
    ran = subprocess.run([name, *options, "-c", script], capture_output=True, text=True, timeout=20)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
