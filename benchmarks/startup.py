"""Seconds for `from mlx_imagegen import generate` and `mlx-imagegen --help`, next to Python's own start."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

LIMITS = {"import": 0.15, "help": 0.30}  # seconds
HEAVY = ("mlx_vlm", "transformers", "torch")
COMMANDS = {
    "python": ["-c", "pass"],
    "import": ["-c", "from mlx_imagegen import generate"],
    "help": ["-m", "mlx_imagegen", "--help"],
}


def main(rounds: int = 15) -> dict[str, float]:
    """Wall clock of whole processes, in turns; import counts without Python's own start, help with it."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            seconds[name].append(_run(arguments))
    medians = {
        name: statistics.median(values[1:]) for name, values in seconds.items()
    }  # the first round warms the disk
    own = medians["python"]
    medians["import"] -= own
    print(f"  python alone            {own:6.3f} s")
    print(
        f"  import generate  +{medians['import']:6.3f} s  of {LIMITS['import']} s:"
        f" {medians['import'] / LIMITS['import']:.2f}"
    )
    print(
        f"  --help            {medians['help']:6.3f} s  of {LIMITS['help']} s: {medians['help'] / LIMITS['help']:.2f}"
    )
    print(f"  import pulls {_heavy() or 'none'} of {', '.join(HEAVY)}")
    return medians


def _run(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _heavy() -> str:
    code = f"import sys; from mlx_imagegen import generate; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
