"""The wheel: all that runs, small, and no weights but the demo's."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("mlx_imagegen", "weights", "quant", "benchmarks/macs")
SIZE_LIMIT = 30 * 10**6


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of the checkout in which somebody left weights lying about."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for stray in ("weights/stray.safetensors", "mlx_imagegen/stray.gguf", "weights/FLUX.1-dev/ae.safetensors"):
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).write_bytes(bytes(1000))
    out = copy / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    ran = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_all_that_runs_is_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder, target in (
        ("mlx_imagegen", "mlx_imagegen"),
        ("weights", "mlx_imagegen/weights"),
        ("quant", "mlx_imagegen/quant"),
    ):
        for kind in ("py", "toml", "typed", "html", "css", "js", "svg"):
            for path in (ROOT / folder).rglob(f"*.{kind}"):
                assert f"{target}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "mlx_imagegen/benchmarks/macs/published.json" in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "examples", "weights", "quant")]


def test_it_is_small_and_holds_no_stray_weights(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename and Path(wheel.filename).stat().st_size < SIZE_LIMIT
    weights = [name for name in wheel.namelist() if name.endswith((".safetensors", ".gguf", ".bin", ".npz"))]
    assert not [name for name in weights if not name.startswith("mlx_imagegen/weights/demo/")]


def test_what_it_needs_is_declared(wheel: zipfile.ZipFile) -> None:
    from mlx_imagegen import __version__

    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    assert f"Version: {__version__}\n" in metadata
    needed = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    always = {line.split(";")[0].split(">")[0].split("[")[0] for line in needed if "extra ==" not in line}
    assert always == {
        "mlx", "mlx-vlm", "numpy", "safetensors", "huggingface-hub", "pillow", "sentencepiece", "tokenizers", "tqdm",
    }  # fmt: skip
    assert "mlx[cpu]>=0.32.4; sys_platform == 'linux'" in [line.replace('"', "'") for line in needed]


def test_it_runs_from_where_it_is_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        "from mlx_imagegen.hub.manifest import data_folder, manifests; from pathlib import Path; import mlx_imagegen;"
        " home = Path(mlx_imagegen.__file__).parent; assert data_folder('weights') == home / 'weights',"
        " data_folder('weights'); assert data_folder('quant') == home / 'quant'; assert 'flux-dev' in manifests();"
        " print(home)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == str(tmp_path / "site" / "mlx_imagegen"), ran.stderr


def test_the_console_script_is_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["mlx-imagegen"].partition(":")
    assert (module, function) == ("mlx_imagegen.cli", "entry")


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the user's choice, made in pip's own settings."""
    hosts = [part + ".org" for part in ("pypi", "pythonhosted", "pytorch")]
    for path in [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", ROOT / "README.md"]:
        assert not [host for host in hosts if host in path.read_text()], path
