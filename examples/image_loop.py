"""Image-to-image in a loop: each picture starts from the previous one. The frames become a GIF.

    python examples/image_loop.py photo.jpg "an oil painting of a harbour" --model flux-dev --rounds 8 --strength 0.35

The strength says how far each round moves from the previous picture: above 0 (keep it) to 1 (replace it).
"""

import argparse
from pathlib import Path

from PIL import Image

from mlx_imagegen import load


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="flux-demo")
    parser.add_argument("--quant")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--strength", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("loop.gif"))
    args = parser.parse_args(arguments)

    pipeline = load(args.model, quant=args.quant)
    with Image.open(args.picture) as opened:
        picture = opened.convert("RGB")
    frames = []
    for index in range(args.rounds):
        # A new seed each round: the same noise every time would add up to a pattern.
        result = pipeline.generate(args.prompt, image=picture, strength=args.strength, seed=args.seed + index)
        picture = result.image
        frames.append(picture)
        print(f"round {index + 1} of {args.rounds}: {result.report.total_seconds:.1f} s")
    frames[0].save(args.output, save_all=True, append_images=frames[1:], duration=250, loop=0)
    print(args.output)


if __name__ == "__main__":
    main()
