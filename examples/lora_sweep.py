"""One prompt and seed at several scales of a LoRA, side by side in one picture.

    python examples/lora_sweep.py "a red fox" style.safetensors --model flux-schnell --scales 0 0.4 0.8 1.2

The model is opened once; `set_lora` reads only the layers again that the LoRA changes.
"""

import argparse
from pathlib import Path

from PIL import Image

from mlx_imagegen import load


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index * width, 0))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("lora", help="a .safetensors file, or owner/repository:file")
    parser.add_argument("--model", default="flux-demo")
    parser.add_argument("--quant")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.5, 1])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("sweep.png"))
    args = parser.parse_args(arguments)

    pipeline = load(args.model, quant=args.quant)
    pictures = []
    for scale in args.scales:
        pipeline.set_lora([(args.lora, scale)] if scale else [])
        result = pipeline.generate(args.prompt, seed=args.seed)
        pictures.append(result.image)
        print(f"scale {scale:g}: {result.report.total_seconds:.1f} s")
    side_by_side(pictures).save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
