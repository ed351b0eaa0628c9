"""What a step cache's thresholds save, and what they change; by default in the built-in models.

Each threshold's pictures against the same without a cache: steps predicted, how many times fewer blocks are evaluated
(the first one always is), and the pictures' distance. Two prompts, one seed.
"""

import argparse
import statistics

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

from mlx_imagegen.measuring.quality import compared
from mlx_imagegen.pipeline import Pipeline, load
from mlx_imagegen.result import Result

PROMPTS = ["a red circle on a white background", "a blue star on a gray background"]
MODELS = {"flux-demo": 28, "qwen-demo": 30, "hidream-demo-full": 30}
THRESHOLDS = [0.08, 0.12, 0.2, 0.3]


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
        plain = pipeline.generate(PROMPTS, seed=3, steps=steps)
        for threshold in options.threshold:
            cached = pipeline.generate(PROMPTS, seed=3, steps=steps, cache=threshold)
            print(
                f"| {model}, {steps} | {threshold:g} | " + " | ".join(_row(pipeline, plain, cached, steps)) + " |",
                flush=True,
            )


def _row(pipeline: Pipeline, plain: list[Result], cached: list[Result], steps: int) -> list[str]:
    predicted = [int(result.report.choices["step cache"].split()[0]) for result in cached]
    blocks = block_count(pipeline)
    run = statistics.mean(steps * blocks - count * (blocks - 1) for count in predicted)
    quality = [compared(one.image, other.image) for one, other in zip(cached, plain, strict=True)]
    psnr = min(each.psnr_db for each in quality if each.psnr_db is not None)
    return [
        " and ".join(map(str, predicted)), f"{steps * blocks / run:.2f}x", f"{psnr:.1f}",
        f"{min(each.ssim for each in quality):.4f}", f"{max(each.gmsd for each in quality):.4f}",
    ]  # fmt: skip


def block_count(pipeline: Pipeline) -> int:
    model = pipeline.family.transformer.load()
    stream = getattr(model, "language_model", model)
    names = ("transformer_blocks", "single_transformer_blocks", "layers")
    return sum(len(stream[name]) for name in names if name in stream)


if __name__ == "__main__":
    main()
