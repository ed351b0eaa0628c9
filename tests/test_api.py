"""The public surface: what is exported, what it accepts, and that importing it stays cheap."""

import inspect
import subprocess
import sys

import mlx_imagegen
from mlx_imagegen import api, pipeline
from mlx_imagegen.request import job

HEAVY = ("mlx", "numpy", "PIL", "mlx_vlm", "transformers", "torch", "huggingface_hub", "tokenizers")


def test_the_public_names() -> None:
    assert mlx_imagegen.__all__ == ["ImagegenError", "Pipeline", "Result", "generate", "load", "quantize"]
    assert all(getattr(mlx_imagegen, name) is not None for name in mlx_imagegen.__all__)


def test_importing_generate_imports_nothing_heavy() -> None:
    code = f"import sys; from mlx_imagegen import generate; print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_documented_parameters_are_those_that_are_taken() -> None:
    opening = set(inspect.signature(pipeline.load).parameters) - {"model"}
    taken = {"seed", "count", "on_step", *job.PARAMETERS} | opening
    assert set(api.Parameters.__annotations__) == taken and set(pipeline.LOAD_FIELDS) == opening
