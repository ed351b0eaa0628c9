"""The public surface: what is exported, what it accepts, and that importing it stays cheap."""

import inspect
import subprocess
import sys

import mlx_imagegen
from mlx_imagegen import api, pipeline
from mlx_imagegen.request import parameters

HEAVY = ("mlx", "numpy", "PIL", "mlx_vlm", "transformers", "torch", "huggingface_hub", "tokenizers")


def test_the_public_names() -> None:
    assert mlx_imagegen.__all__ == ["ImagegenError", "Pipeline", "Result", "generate", "load", "quantize"]
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
