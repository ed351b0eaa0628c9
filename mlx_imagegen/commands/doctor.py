"""`doctor`: is this machine ready, and for what."""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import QuantizationError

if TYPE_CHECKING:
    from ..measuring.doctor import Fit


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", default=[], help="only these: names or folders (all known models)")
    parser.add_argument("--no-self-test", action="store_true", help="do not check the kernels")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> None:
    from ..measuring.doctor import facts, fits, self_test, warnings
    from ..planning.recommend import describe

    known, found = facts(), fits(args.model)
    if not args.json:
        print(table(known, warnings(known), found))
        if not args.model:
            print("\n".join(["", "to begin with, by a Mac's memory:", *describe()]))
    started = time.perf_counter()
    checks = [] if args.no_self_test else list(self_test())
    seconds = time.perf_counter() - started
    wrong = [check for check in checks if not check.right]
    if args.json:
        said = [asdict(check) | {"error": _number(check.error), "right": check.right} for check in checks]
        fitting = [asdict(fit) | {"verdict": fit.verdict} for fit in found]
        data = {"machine": known, "warnings": warnings(known), "models": fitting, "self_test": said}
        data |= {} if args.model else {"to_begin_with": describe()}
        print(json.dumps(data, indent=1))
    elif checks:
        print(f"\nself-test: {len(checks) - len(wrong)} of {len(checks)} packed products are right ({seconds:.1f} s)")
    for check in wrong:
        print(f"wrong: {check}", file=sys.stderr)
    if wrong:
        raise QuantizationError(
            f"{len(wrong)} of {len(checks)} packed products are wrong with this chip and MLX {known['mlx']}: quantized "
            "models would give noise. Install another version of MLX, or use full precision."
        )


def _number(error: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return error if math.isfinite(error) else None


def table(known: dict[str, str], warned: list[str], found: "list[Fit]") -> str:
    from ..machine import GB
    from ..measuring.tables import NONE, aligned, short

    width = max(map(len, known))
    lines = [f"{name:<{width}}  {value}" for name, value in known.items()]
    lines += [f"warning: {line}" for line in warned]
    rows = [
        [fit.model, fit.quant, NONE, NONE, NONE, fit.verdict] if fit.reason else
        [fit.model, fit.quant, short(fit.peak_bytes / GB), short(fit.all_bytes / GB), short(fit.seconds), fit.verdict]
        for fit in found
    ]  # fmt: skip
    header = ("model", "quant", "peak GB", "all GB", "steps at best, s", "on this machine")
    return "\n".join([*lines, "", aligned(header, rows)])
