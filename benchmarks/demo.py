"""Accuracy of the built-in demo models on 200 held-out captions each, at the manifest's defaults, at several quants.

`python benchmarks/demo.py [MODEL …] [--quant q8 q4] [--count 200]`; examples/train_demo/score.py judges the pictures.
`--language zh`: Chinese captions, for Qwen-Image's model; `--open`: captions that leave parts open ("a red circle").
Seconds are processor seconds, because these hardly depend on the machine's load.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "examples/train_demo")]
import open_captions
import scenes
import score

from mlx_imagegen import load
from mlx_imagegen.measuring.quality import psnr

MODELS = ("flux-demo", "qwen-demo", "qwen-demo-lightning", "hidream-demo", "hidream-demo-full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--quant", nargs="*", default=[], metavar="RECIPE")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--open", action="store_true", help="captions that leave parts open")
    parser.add_argument("--language", default="en", choices=("en", "zh"))
    args = parser.parse_args()
    wanted, captions = _held_out(args.count, args.language, args.open)
    print(f"{args.count} held-out captions{', parts left open' if args.open else ''}; shares that are right")
    print(f"{'model':20s} {'quant':6s} background colour position shape   all   PSNR dB  processor seconds a picture")
    for model in args.models:
        full = None
        for quant in [None, *args.quant]:
            started = time.process_time()
            pictures = _draw(model, quant, captions)
            seconds = (time.process_time() - started) / args.count
            full = pictures if full is None else full
            shares = score.score(pictures, wanted)
            numbers = "  ".join(
                f"{shares[name]:7.3f}" for name in ("background", "colour", "position", "shape", "right")
            )
            print(
                f"{model:20s} {quant or 'full':6s} {numbers} {_psnr(pictures, full):7.1f} {seconds:10.2f}", flush=True
            )


def _held_out(count: int, language: str, with_open_parts: bool) -> tuple[list[scenes.Scene], list[str]]:
    if with_open_parts:
        return open_captions.held_out(count, 2026, language)
    wanted = scenes.sample(np.random.default_rng(2026), count, held_out=True)
    return wanted, [scenes.caption(scene, language) for scene in wanted]


def _draw(model: str, quant: str | None, captions: list[str]) -> np.ndarray:
    pipeline = load(model, quant=quant)
    results = [pipeline.generate(caption, seed=seed) for seed, caption in enumerate(captions)]
    return np.stack([np.asarray(result.image) for result in results])


def _psnr(pictures: np.ndarray, reference: np.ndarray) -> float:
    decibels = psnr(pictures / 255, reference / 255)
    return math.inf if decibels is None else decibels


if __name__ == "__main__":
    main()
