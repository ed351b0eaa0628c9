"""What a step cache's thresholds save and change, by default for the built-in models.

Compares each threshold's pictures with the same pictures without a cache: steps predicted, how many times fewer blocks
are evaluated (the first block always is), and the distance of the pictures: the mean over prompts, and the worst. The
prompts are not the two that the manifests' thresholds were chosen by.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

from mlx_imagegen.measuring.quality import compared
from mlx_imagegen.pipeline import Pipeline, load
from mlx_imagegen.result import Result

PROMPTS = [
    "a small red circle left of a large blue square on a white background",
    "a green triangle on a black background",
    "a large yellow star above a small purple circle on a gray background",
    "an orange square on a blue background",
]
MODELS = {"flux-demo": 28, "qwen-demo": 30, "hidream-demo-full": 30}
THRESHOLDS = [0.08, 0.12, 0.2, 0.3]
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(prog="step_cache", description=__doc__)
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threshold", type=float, nargs="+", default=THRESHOLDS)
    options = parser.parse_args()
    print(
        "| model, steps | threshold | predicted | fewer blocks | PSNR dB | SSIM | GMSD |\n|---|---|---|---|---|---|---|"
    )
    for model in options.model:
        pipeline, steps = load(model), options.steps or MODELS.get(model, 30)
        plain = pipeline.generate(PROMPTS, seed=SEED, steps=steps)
        for threshold in options.threshold:
            cached = pipeline.generate(PROMPTS, seed=SEED, steps=steps, cache=threshold)
            print(
                f"| {model}, {steps} | {threshold:g} | " + " | ".join(_row(pipeline, plain, cached, steps)) + " |",
                flush=True,
            )


def _row(pipeline: Pipeline, plain: list[Result], cached: list[Result], steps: int) -> list[str]:
    predicted = [int(result.report.choices["step cache"].split()[0]) for result in cached]
    blocks = block_count(pipeline)
    run = statistics.mean(steps * blocks - count * (blocks - 1) for count in predicted)
    quality = [compared(one.image, other.image) for one, other in zip(cached, plain, strict=True)]
    psnr = [each.psnr_db for each in quality if each.psnr_db is not None] or [float("inf")]
    return [
        f"{statistics.mean(predicted) / steps:.0%}", f"{steps * blocks / run:.2f}x",
        _mean_and_worst(psnr, min, 1), _mean_and_worst([each.ssim for each in quality], min, 4),
        _mean_and_worst([each.gmsd for each in quality], max, 4),
    ]  # fmt: skip


def _mean_and_worst(values: Sequence[float], worst: Callable[[Sequence[float]], float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f}, {worst(values):.{digits}f}"


def block_count(pipeline: Pipeline) -> int:
    model = pipeline.family.transformer.load()
    stream = getattr(model, "language_model", model)
    names = ("transformer_blocks", "single_transformer_blocks", "layers")
    return sum(len(stream[name]) for name in names if name in stream)


if __name__ == "__main__":
    main()
