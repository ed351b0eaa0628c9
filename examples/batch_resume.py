"""A batch that resumes: every prompt of a file with every seed. Finished pictures are not drawn again.

    python examples/batch_resume.py prompts.txt out --model flux-schnell --quant q8 --seeds 1 2 3

Stop it at any moment and run the same command again. A picture is written atomically and contains its record, so the
folder shows what is finished.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from mlx_imagegen import load


def is_finished(path: Path, model: str, prompt: str, seed: int) -> bool:
    """Whether the file is this picture, and not one of another prompt that had the same number before."""
    if not path.exists():
        return False
    with Image.open(path) as picture:
        record = json.loads(picture.info.get("mlx_imagegen", "{}"))
    return (record.get("model"), record.get("prompt"), record.get("seed")) == (model, prompt, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="flux-demo")
    parser.add_argument("--quant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args(arguments)

    args.folder.mkdir(parents=True, exist_ok=True)
    prompts = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    wanted = [
        (args.folder / f"{index:03}-{seed}.png", prompt, seed)
        for index, prompt in enumerate(prompts, 1)
        for seed in args.seeds
    ]
    missing = [each for each in wanted if not is_finished(each[0], args.model, *each[1:])]
    print(f"{len(missing)} of {len(wanted)} pictures to draw")
    if not missing:
        return

    pipeline = load(args.model, quant=args.quant)
    jobs = [job for _, prompt, seed in missing for job in pipeline.jobs(prompt, seed=seed)]
    # `stream` encodes each prompt once and yields every picture as soon as memory allows.
    for (path, _, _), result in zip(missing, pipeline.stream(jobs), strict=True):
        print(f"{result.save(path)}  {result.report.total_seconds:.1f} s")


if __name__ == "__main__":
    main()
