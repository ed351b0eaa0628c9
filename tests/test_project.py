"""The project's own files: workflows, issue forms, hooks and metadata name only what is there."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_imagegen import __version__, errors
from mlx_imagegen.cli import COMMANDS

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
HOOKS = ROOT / ".pre-commit-config.yaml"
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"ruff", "mypy", "pytest", "hatchling"}  # what the extra "dev" puts into .venv/bin


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield f"{path.stem}: {name}", job


def shell_lines() -> list[str]:
    return [step["run"] for _, job in jobs() for step in job["steps"] if "run" in step]


def test_every_file_is_there() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "release"} and len(FORMS) >= 2
    for path in (*WORKFLOWS, *FORMS, HOOKS):
        assert isinstance(read(path), dict), path


def test_every_job_ends_and_names_its_actions_with_a_version() -> None:
    for name, job in jobs():
        assert 0 < job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w./-]+", step["uses"]), (name, step)


def test_the_workflows_run_targets_and_commands_that_exist() -> None:
    text = "\n".join(shell_lines())
    targets = re.findall(r"\bmake ([\w-]+)", text)
    assert {"lint", "test", "parity", "wheel"} <= set(targets) and set(targets) <= TARGETS
    commands = re.findall(r"\.venv/bin/([\w-]+) ([\w-]+)", text)
    assert ("mlx-imagegen", "doctor") in commands
    for program, command in commands:
        assert program in PROJECT["scripts"] and command in COMMANDS, (program, command)
    for path in re.findall(r"\b(?:mlx_imagegen|tests|examples|benchmarks)/[\w./]+", text):
        assert (ROOT / path).exists(), path


def test_every_step_is_a_script_that_bash_can_read() -> None:
    for line in shell_lines():
        script = re.sub(r"\$\{\{.*?\}\}", "value", line)  # what GitHub puts in before bash sees it
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert read.returncode == 0, f"{line}: {read.stderr}"


def test_linux_and_macs_are_tested_with_the_oldest_python() -> None:
    matrix = dict(jobs())["test: test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-15"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]


def test_the_release_checks_the_version_as_it_is_written() -> None:
    """The line that the workflow looks for, with this version for the tag."""
    line = next(line for line in shell_lines() if "grep" in line)
    pattern, path = re.search(r'"(__version__.*)" (\S+)', line).groups()  # type: ignore[union-attr]
    wanted = pattern.replace('\\"', '"').replace("${GITHUB_REF_NAME#v}", __version__)
    assert wanted in (ROOT / path).read_text().splitlines()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_every_form_asks_for_the_doctor(path: Path) -> None:
    form = read(path)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"] and form["description"] and len({field["id"] for field in fields}) == len(fields)
    doctor = [field for field in fields if "`mlx-imagegen doctor --json`" in field["attributes"]["label"]]
    assert len(doctor) == 1 and doctor[0]["validations"]["required"] is True


def test_the_hooks_use_installed_tools() -> None:
    hooks = [hook for repo in read(HOOKS)["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}
    needed = {re.split(r"[>=\[]", line)[0] for line in PROJECT["optional-dependencies"]["dev"]}
    assert needed >= TOOLS
    for hook in hooks:
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert hook["language"] == "system" and program in TOOLS


def test_the_changelog_names_errors_that_exist() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.index("## [Unreleased]") < text.index(f"## [{__version__}]")
    renamed = re.findall(r"^ *\| `(\w+)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(renamed) == 3
    for before, now in renamed:
        assert hasattr(errors, now) and not hasattr(errors, before)


def test_the_metadata_links_to_this_project() -> None:
    urls = PROJECT["urls"]
    assert {"Homepage", "Changelog", "Issues"} <= set(urls)
    home = urls["Homepage"]
    for url in urls.values():
        path = url.removeprefix(home).partition("/main/")[2]
        assert url.startswith(home) and (not path or (ROOT / path).exists()), url


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the user's choice, made in pip's own settings."""
    hosts = [part + ".org" for part in ("pypi", "pythonhosted", "pytorch")]
    for path in (*WORKFLOWS, *FORMS, HOOKS, ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/**/*.md")):
        assert not [host for host in hosts if host in path.read_text(encoding="utf-8")], path


def test_tests_are_collected_without_the_references_packages() -> None:
    """`make test` collects parity's files too, where torch and the like need not be."""
    packages = {re.split(r"\W", each)[0] for each in PROJECT["optional-dependencies"]["parity"]}
    for path in (ROOT / "tests").rglob("*.py"):
        if path.parent.name != "references":
            taken = re.findall(r"^(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not packages & set(taken), path
