"""What a type checker sees of the package: `mypy` reads this file (make lint); nothing runs it."""

from typing import assert_type

import mlx_imagegen
from mlx_imagegen import Pipeline, Result, generate, load


def results() -> None:
    assert_type(generate("a fox"), Result)
    assert_type(generate("a fox", seed=1, steps=4, model="flux-schnell", quant="q8"), Result)
    assert_type(generate("a fox", seed=[1, 2]), list[Result])
    assert_type(generate("a fox", seed=range(3)), list[Result])
    assert_type(generate("a fox", count=2), list[Result])
    assert_type(generate(["a fox", "a hen"], seed=1), list[Result])


def pipelines(pipeline: Pipeline) -> None:
    assert_type(load("flux-schnell", quant="q8"), Pipeline)
    assert_type(pipeline.generate("a fox", guidance=3.5), Result)
    assert_type(pipeline.generate("a fox", seed=[1, 2]), list[Result])
    assert_type(pipeline.generate("a fox", count=2), list[Result])
    assert_type(pipeline.generate(["a fox", "a hen"]), list[Result])


def mistakes(pipeline: Pipeline) -> None:
    """mypy reports an ignore that is not needed."""
    generate("a fox", num_inference_steps=4)  # type: ignore[call-overload]
    generate("a fox", steps="four")  # type: ignore[call-overload]
    pipeline.generate("a fox", quant="q8")  # type: ignore[call-overload]
    load("flux-schnell", quantize=8)  # type: ignore[call-arg]
    mlx_imagegen.quantize("flux-schnell", "out", quant=4)  # type: ignore[arg-type]
    print(mlx_imagegen.nothing)  # type: ignore[attr-defined]
