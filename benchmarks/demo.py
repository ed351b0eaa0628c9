"""How right the bundled demo models draw: 200 held-out captions each, at the manifest's defaults, at several quants.

`python benchmarks/demo.py [MODEL …] [--quant q8 q4] [--count 200]`; judged by examples/train_demo/score.py. Chinese
captions with `--language zh`, for Qwen-Image's. Seconds are the processor's, so that a busy machine tells the same.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "examples/train_demo")]
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
    parser.add_argument("--language", default="en", choices=("en", "zh"))
    args = parser.parse_args()
    wanted = scenes.sample(np.random.default_rng(2026), args.count, held_out=True)
    print(f"{args.count} held-out captions; shares that are right")
    print(f"{'model':20s} {'quant':6s} background colour position shape   all   PSNR dB  processor seconds a picture")
    for model in args.models:
        full = None
        for quant in [None, *args.quant]:
            started = time.process_time()
            pictures = _draw(model, quant, wanted, args.language)
            seconds = (time.process_time() - started) / args.count
            full = pictures if full is None else full
            shares = score.score(pictures, wanted)
            numbers = "  ".join(
                f"{shares[name]:7.3f}" for name in ("background", "colour", "position", "shape", "right")
            )
            print(
                f"{model:20s} {quant or 'full':6s} {numbers} {_psnr(pictures, full):7.1f} {seconds:10.2f}", flush=True
            )


def _draw(model: str, quant: str | None, wanted: list[scenes.Scene], language: str) -> np.ndarray:
    pipeline = load(model, quant=quant)
    captions = [scenes.caption(scene, language) for scene in wanted]
    results = [pipeline.generate(caption, seed=seed) for seed, caption in enumerate(captions)]
    return np.stack([np.asarray(result.image) for result in results])


def _psnr(pictures: np.ndarray, reference: np.ndarray) -> float:
    decibels = psnr(pictures / 255, reference / 255)
    return math.inf if decibels is None else decibels


if __name__ == "__main__":
    main()
