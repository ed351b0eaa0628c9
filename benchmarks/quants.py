"""Full precision, q8, q6 and q4 of the built-in demo model, a process for each: seconds, memory, difference."""

import sys
import tempfile
from pathlib import Path

from mlx_imagegen.measuring.bench import AS_STORED, Asked, bench, in_terminal

MODEL = "hidream-demo"
PROMPT = "a red circle above a blue square"


def main() -> None:
    asked = Asked([MODEL], [AS_STORED, "q8", "q6", "q4"], [None], PROMPT, {"seed": 1})
    with tempfile.TemporaryDirectory() as folder:
        print(in_terminal(bench(asked, Path(folder), lambda line: print(f"  {line}", file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
