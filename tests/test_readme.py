"""What the README shows runs: its Python and its commands, on the tiny FLUX.1 in place of every model they name."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen import pipeline
from mlx_imagegen.hub import download
from mlx_imagegen.hub.manifest import Manifest, Model, manifests
from tests.lora.test_pipeline import draw_lora

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = [
    line.removeprefix("$ ")
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
    if line[:2] == "$ "
]
# These install or set up; the machinery that runs the tests has just done so.
NOT_RUN = ("pip ", "make ", "hf ")


@pytest.fixture
def tiny(flux_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every model is the tiny one at 48x32 in 2 steps; the files that the README speaks of are there."""

    def small(manifest: Manifest) -> Manifest:
        return replace(manifest, defaults=replace(manifest.defaults, steps=2, width=48, height=32))

    original = pipeline.locate

    def locate(model: str, *_: object) -> tuple[Model, Path]:
        if "/" in model:  # what a command before has written
            return original(model)
        manifest = download.find(model).manifest
        manifest = manifest if manifest.family == "flux1" else manifests()["flux-schnell"]
        return Model(small(manifest), flux_folder, model), flux_folder

    for module in (pipeline, conversion_plan):
        monkeypatch.setattr(module, "locate", locate)
    monkeypatch.setattr(pipeline, "pending_download", lambda model: None)  # nothing has to be downloaded
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "teal").save("photo.jpg")
    Path("prompts.txt").write_text("a red fox\na blue hen\n")
    Path("jobs.jsonl").write_text(
        json.dumps({"prompt": "an owl", "seed": 3, "steps": 1}) + "\n" + json.dumps({"prompt": "a hen"})
    )
    draw_lora(Path("style.safetensors"), flux_folder, 1, part="attn")
    Path("out").mkdir()


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 3 and len([line for line in COMMANDS if line.startswith("mlx-imagegen")]) >= 6


def test_the_python_runs(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), {})
    assert Image.open("lighthouse.png").size == (48, 32)
    assert "width 1000" in capsys.readouterr().out


def test_the_commands_run(tiny: None, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        if not line.startswith(NOT_RUN):
            name, *arguments = shlex.split(line)
            assert name == "mlx-imagegen", line
            ran = cli(*arguments)
            assert ran.code == 0 and ran.out, (line, ran)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"lighthouse.png", "another.png", "changed.png", "001.png", "a-red-fox-4.png"} <= names
    assert len(list(Path("out").iterdir())) == 4


def test_the_targets_and_links_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make (\w+)`|^\$ make (\w+)", TEXT, re.MULTILINE):
        assert "".join(target) in targets
    for path in re.findall(r"`((?:mlx_imagegen|benchmarks|tests)/[\w./]*)`", TEXT):
        assert (README.parent / path).exists(), path


def test_the_table_of_models_is_the_manifests() -> None:
    """On a difference it prints the table to put in."""
    shown = TEXT.partition("| licence |\n|---|---|---|---|---|\n")[2].partition("\n\n")[0] + "\n"
    assert shown == "".join(map(row, manifests().values()))


def test_the_default_model_is_named() -> None:
    assert re.search(r"^\| `model` \|.*\| `([\w-]+)` \|$", TEXT, re.MULTILINE)[1] == pipeline.DEFAULT_MODEL  # type: ignore[index]


def row(manifest: Manifest) -> str:
    size = f"{manifest.defaults.width}x{manifest.defaults.height}"
    amount = "built in" if manifest.folder else f"{manifest.download_bytes / 1e9:.1f} GB"
    gated = ", gated" if manifest.gated else ""
    return f"| `{manifest.name}` | {size} | {manifest.defaults.steps} | {amount} | {manifest.licence}{gated} |\n"


def test_every_parameter_of_the_table_exists() -> None:
    from mlx_imagegen.api import Parameters

    table = TEXT.partition("| parameter |")[2].partition("\n\n")[0]
    names = {
        name for first in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", first)
    }
    assert len(names) > 15 and names <= set(Parameters.__annotations__) | {"model"}
