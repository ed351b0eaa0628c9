"""Q6 against Q8, or any other recipes, on your own prompts and seeds, compared with full precision.

    python examples/q6_against_q8.py "a red fox in snow" "a harbour at dawn" --model flux-schnell --quants q8 q6 q4

Prints dB (higher is closer), the largest brightness shift (of 255) and seconds per step; saves every picture. If full
precision does not fit, use --reference q8. `mlx-imagegen bench` measures speed better, with one process per row.
"""

import argparse
import statistics
from pathlib import Path

from PIL import Image

from mlx_imagegen import Result, load
from mlx_imagegen.measuring.quality import compared

FULL = "none"


def draw(model: str, quant: str, prompts: list[str], seed: int, steps: int | None, folder: Path) -> list[Result]:
    """One picture per prompt. The pipeline is freed before the next one is loaded."""
    pipeline = load(model, quant=None if quant == FULL else quant)
    more = {} if steps is None else {"steps": steps}
    results = [pipeline.generate(prompt, seed=seed, **more) for prompt in prompts]
    for index, result in enumerate(results, 1):
        result.save(folder / f"{index:02}-{quant}.png")
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--model", default="flux-demo")
    parser.add_argument("--quants", nargs="+", default=["q8", "q6"])
    parser.add_argument("--reference", default=FULL, help="what to compare with (full precision)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("-o", "--output", type=Path, default=Path("quants"))
    args = parser.parse_args(arguments)

    args.output.mkdir(parents=True, exist_ok=True)
    reference: list[Image.Image] = []
    for quant in [args.reference, *args.quants]:
        results = draw(args.model, quant, args.prompts, args.seed, args.steps, args.output)
        pictures = [result.image for result in results]
        step = statistics.median(seconds for result in results for seconds in result.report.step_seconds)
        line = f"{quant:6} {step:8.3f} s a step"
        if reference:
            found = [compared(picture, aim) for picture, aim in zip(pictures, reference, strict=True)]
            decibels = statistics.mean(one.psnr_db or float("inf") for one in found)
            shift = max(abs(one.brightness_shift_levels) for one in found)
            line += f"  {decibels:6.1f} dB  brightness shift {shift:.2f}"
        reference = reference or pictures
        print(line)


if __name__ == "__main__":
    main()
