"""What README and guides show runs: their Python and their commands, on the tiny FLUX.1 in place of every model."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen import pipeline, preflight
from mlx_imagegen.hub import download
from mlx_imagegen.hub.manifest import Manifest, Model, manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.machine import GIB, working_set_of
from mlx_imagegen.packing.recipes import read_recipe, recipe_names
from mlx_imagegen.planning.plan import Plan, plan
from mlx_imagegen.quantization import conversion_plan
from mlx_imagegen.request.job import usual_job
from mlx_imagegen.request.kinds import Parameter
from tests.draw import drawn_data
from tests.lora.test_pipeline import draw_lora

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (README, *GUIDES)}
OTHER_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
README_BYTES = 9_000
# These install or set up; the machinery that runs the tests has just done so.
NOT_RUN = ("pip ", "make ", "hf ")
# The table "Which model for which Mac": its columns, and the models that each speaks for.
ADVISED = (
    ("flux2-klein-4b",),
    ("z-image-turbo",),
    ("flux-schnell", "flux-dev"),
    ("qwen-image-lightning",),
    ("hidream-o1-dev",),
)


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[str]:
    lines = "".join(blocks(page, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]
COMMAND_PAGES = [page for page in PAGES if commands(page)]


@pytest.fixture
def tiny(flux_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every model is the tiny one at 48x32 in 2 steps; the files that the pages name are there."""

    def small(manifest: Manifest) -> Manifest:
        extras = manifest.extras
        if manifest.family == "flux1" and manifest.edits:  # references are a megapixel each
            extras = extras | {"references": extras["references"] | {"sizes": [[48, 32]]}}
        return replace(manifest, defaults=replace(manifest.defaults, steps=2, width=48, height=32), extras=extras)

    identify = preflight.identify

    def identify_tiny(model: str) -> Model:
        if "/" in model:  # what a command before has written
            found = identify(model)
            return replace(found, manifest=small(found.manifest))
        manifest = download.find(model).manifest
        if manifest.name == "qwen-image-layered":
            manifest = replace(manifest, extras=manifest.extras | {"references_area": 48 * 32})
            return Model(small(manifest), drawn_data() / "qwen_image/layered", model)
        if manifest.family != "flux1":
            manifest = manifests()["flux-kontext-dev" if manifest.edits else "flux-schnell"]
        return Model(small(manifest), flux_folder, model)

    for module in (preflight, pipeline, conversion_plan):
        monkeypatch.setattr(module, "identify", identify_tiny)
    monkeypatch.setattr(preflight, "pending_download", lambda found: None)  # nothing has to be downloaded
    monkeypatch.setattr(download, "is_local", lambda model: True)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "teal").save("photo.jpg")
    Image.new("L", (64, 48), "white").save("mask.png")
    Path("prompts.txt").write_text("a red fox\na blue hen\n")
    Path("jobs.jsonl").write_text(
        json.dumps({"prompt": "an owl", "seed": 3, "steps": 1}) + "\n" + json.dumps({"prompt": "a hen"})
    )
    draw_lora(Path("style.safetensors"), flux_folder, 1, part="attn")
    Path("out").mkdir()


def test_there_is_something_to_run() -> None:
    assert len(GUIDES) >= 8 and len(PYTHON_PAGES) >= 5 and len(COMMAND_PAGES) >= 7
    assert len(blocks("README.md", "python")) >= 2
    assert len([line for line in commands("README.md") if line.startswith("mlx-imagegen")]) >= 6


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= README_BYTES


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_runs(page: str, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    if page in ("README.md", "examples/guides/python-api.md"):
        assert Image.open("lighthouse.png").size == (48, 32)
    if page == "examples/guides/python-api.md":
        assert "width 1000" in out and "stopped" in out and Image.open("preview.png").size == (48, 32)


@pytest.mark.parametrize("page", COMMAND_PAGES)
def test_the_commands_run(
    page: str, tiny: None, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But those that another page has with more flags."""
    monkeypatch.chdir(tmp_path)
    others = [line for other in COMMAND_PAGES if other != page for line in commands(other)]
    for line in commands(page):
        if not line.startswith(NOT_RUN) and not any(other.startswith(f"{line} -") for other in others):
            name, *arguments = shlex.split(line)
            assert name == "mlx-imagegen", line
            ran = cli(*arguments)
            assert ran.code == 0 and ran.out, (line, ran)
    names = {path.name for path in tmp_path.glob("*.png")}
    named = {name for name in re.findall(r"-o (\S+\.png)", "".join(blocks(page, "console"))) if "{" not in name}
    assert named <= names, named - names
    if page == "README.md":
        assert {"lighthouse.png", "another.png", "a-red-fox-4.png"} <= names and len(list(Path("out").iterdir())) == 2
    if page == "examples/guides/command-line.md":
        assert {"lighthouse.png", "another.png", "changed.png", "001.png", "a-red-fox-4.png"} <= names
        assert len(list(Path("out").iterdir())) == 4


def test_the_targets_and_links_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pages = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in OTHER_PAGES}
    for page, text in pages.items():
        for target in re.findall(r"`make (\w+)`|^\$ make (\w+)", text, re.MULTILINE):
            assert "".join(target) in targets, (page, target)
        for path in re.findall(r"`((?:mlx_imagegen|benchmarks|tests|examples|weights|quant)/[\w./*-]*)`", text):
            assert any(ROOT.glob(path.rstrip("/").replace("NAME", "*"))), (page, path)
        for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[\w-]+)?\)", text):
            assert not link or ((ROOT / page).parent / link).exists(), (page, link)


def test_every_guide_is_linked_from_the_readme() -> None:
    for guide in GUIDES:
        assert f"({guide.relative_to(ROOT).as_posix()})" in PAGES["README.md"], guide.name


def test_the_map_names_what_is_there() -> None:
    """Where a step's time is measured, a LoRA's key renamed and a dtype decided."""
    rows = PAGES["README.md"].partition("| question | file |")[2].partition("\n\n")[0]
    for question, path, content in (
        ("step's time", "mlx_imagegen/sampling.py", "time.perf_counter()"),
        ("LoRA's key", "mlx_imagegen/lora/names.py", "def known_names"),
        ("dtype", "mlx_imagegen/precision.py", "mx.bfloat16"),
    ):
        row = next(line for line in rows.splitlines() if question in line)
        assert f"`{path}`" in row and content in (ROOT / path).read_text(), question


def test_the_table_of_models_is_the_manifests() -> None:
    """On a difference it prints the table to put in."""
    text = PAGES["examples/guides/models.md"]
    shown = text.partition("| licence |\n|---|---|---|---|---|\n")[2].partition("\n\n")[0] + "\n"
    assert shown == "".join(map(row, manifests().values()))


def test_the_default_model_is_named() -> None:
    text = PAGES["examples/guides/python-api.md"]
    assert re.search(r"^\| `model` \|.*\| `([\w-]+)` \|$", text, re.MULTILINE)[1] == pipeline.DEFAULT_MODEL  # type: ignore[index]


def row(manifest: Manifest) -> str:
    size = f"{manifest.defaults.width}x{manifest.defaults.height}"
    amount = "built in" if manifest.folder else f"{manifest.download_bytes / 1e9:.1f} GB"
    gated = ", gated" if manifest.gated else ""
    return f"| `{manifest.name}` | {size} | {manifest.defaults.steps} | {amount} | {manifest.licence}{gated} |\n"


def test_every_parameter_of_the_table_exists() -> None:
    from mlx_imagegen.request.parameters import BY_NAME

    table = (
        PAGES["examples/guides/python-api.md"].partition("| parameter | meaning | default |")[2].partition("\n\n")[0]
    )
    names = {
        name for first in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", first)
    }
    assert len(names) > 15 and names <= set(BY_NAME)


def test_the_table_of_parameters_is_the_declared_one() -> None:
    """On a difference it prints the table to put in."""
    from mlx_imagegen.request.parameters import PARAMETERS

    def line(row: Parameter) -> str:
        default = row.default_text if row.default is None else f"`{row.default}`"
        return f"| `{row.name}` | {row.help} | {default} |\n"

    page, header = PAGES["examples/guides/python-api.md"], "| parameter | meaning | default |\n|---|---|---|\n"
    shown = page.partition(header)[2].partition("\n\n")[0] + "\n"
    assert shown == "".join(map(line, PARAMETERS))


def plans(name: str) -> dict[str, Plan]:
    """By each recipe, the most precise first, on a GPU; from the published headers."""
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = pipeline.open_family(manifest, folder, WeightTransforms())
        job = usual_job(manifest, family.size_multiple)
        recipes = {None: "16 bits"} | {quant: quant for quant in sorted(recipe_names(), reverse=True)}
        return {
            title: plan(family, job.settings, True, job.prompt, recipe=quant and read_recipe(quant, manifest.family))
            for quant, title in recipes.items()
        }


def advice(models: dict[str, dict[str, Plan]], usable: float) -> str:
    """The most precise weights by which each of these models fits, a stage at a time."""
    first = next(iter(models.values()))
    for title in first:
        if all(made[title].peak_bytes <= usable for made in models.values()):
            staged = len(first[title].stages) > 1
            at_once = staged and all(made[title].resident_peak_bytes <= usable for made in models.values())
            return f"{title}, all at once" if at_once else title
    return "–"


def test_the_table_of_macs_is_what_the_plans_say() -> None:
    """On a difference it prints the rows to put in."""
    text = PAGES["README.md"].partition("| memory |")[2].partition("\n\n")[0]
    shown = [line for line in text.splitlines() if re.match(r"\| \d+ GB", line)]
    columns = [{name: plans(name) for name in names} for names in ADVISED]
    expected = []
    for gigabytes in (8, 16, 24, 32, 48, 64):
        cells = [advice(column, working_set_of(gigabytes * GIB)) for column in columns]
        expected.append(f"| {gigabytes} GB | {' | '.join(cells)} |")
    assert shown == expected, "\n".join(expected)
