"""The public surface: what is exported, what it accepts, and that importing it stays cheap."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_overloads

import pytest

import mlx_imagegen
from mlx_imagegen import api, pipeline
from mlx_imagegen.request import parameters

HEAVY = ("mlx", "numpy", "PIL", "mlx_vlm", "transformers", "torch", "huggingface_hub", "tokenizers")


def test_the_public_names() -> None:
    assert mlx_imagegen.__all__ == ["ImagegenError", "Pipeline", "Result", "generate", "load", "quantize", "upsample"]
    assert all(getattr(mlx_imagegen, name) is not None for name in mlx_imagegen.__all__)


def test_importing_generate_imports_nothing_heavy() -> None:
    code = f"import sys; from mlx_imagegen import generate; print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_signatures_are_the_table() -> None:
    """`generate`, `Pipeline.generate` and `Pipeline.jobs` show the table's rows; `load` writes its few out."""
    shown = {
        api.generate: parameters.PARAMETERS,
        pipeline.Pipeline.generate: [row for row in parameters.PARAMETERS if row.scope != "load"],
        pipeline.Pipeline.jobs: [row for row in parameters.PARAMETERS if row.scope != "load" and row.name != "on_step"],
        pipeline.load: parameters.LOAD,
    }
    for function, rows in shown.items():
        signature = inspect.signature(function).parameters
        assert signature.keys() - {"self"} == {row.name for row in rows}, function
        for row in rows:
            default = inspect.Parameter.empty if row.name == "prompt" else row.default
            assert signature[row.name].default == default, (function, row.name)
            assert signature[row.name].annotation is not inspect.Parameter.empty
            assert f"\n{row.name}: {row.help}" in (function.__doc__ or "")


def test_overloads_are_the_same_in_both_places() -> None:
    """What comes back depends on prompt, seed and count alike; tests/typed_face.py holds what a type checker sees."""

    def own(function: Callable[..., object], name: str) -> list[str]:
        return [str(each.__annotations__.get(name)) for each in get_overloads(function)]

    for name in ("prompt", "seed", "count"):
        face, warm = own(api.generate, name), own(pipeline.Pipeline.generate, name)
        assert face == warm and len(face) == 4


IMPORTED_FIRST = (
    "import mlx_imagegen.quantize; assert mlx_imagegen.quantize is mlx_imagegen.quantization.quantizer.quantize"
)
IMPORTED_LATER = "from mlx_imagegen import quantize; import mlx_imagegen.quantize as module; assert module is quantize"


@pytest.mark.parametrize("imports", [IMPORTED_FIRST, IMPORTED_LATER], ids=["module first", "function first"])
def test_the_module_quantize_is_the_function(imports: str, flux_folder: Path, tmp_path: Path) -> None:
    code = f"{imports}; import importlib.util as u, mlx_imagegen; assert u.find_spec('mlx_imagegen.quantize')"
    code += f"; print(mlx_imagegen.quantize({str(flux_folder)!r}, 'packed', quant='q8'))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{tmp_path / 'packed'}\n" and (tmp_path / "packed" / "transformer").is_dir()


def test_the_module_quantize_is_the_command() -> None:
    command = [sys.executable, "-m", "mlx_imagegen.quantize", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: mlx-imagegen quantize") and ran.stderr == ""


def test_names_are_the_typed_ones() -> None:
    """The names for type checkers, the homes and __all__ are one list."""
    source = inspect.getsource(mlx_imagegen).partition("if TYPE_CHECKING:\n")[2].partition("\n\n")[0]
    typed = {name.strip() for line in source.splitlines() for name in line.partition(" import ")[2].split(",")}
    assert typed == set(mlx_imagegen._HOMES) == set(mlx_imagegen.__all__)
    assert set(mlx_imagegen.__all__) <= set(dir(mlx_imagegen))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mlx_imagegen.nothing  # noqa: B018
