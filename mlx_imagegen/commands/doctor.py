"""`doctor`: is this machine ready, and for what."""

import argparse
import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..documents import json_text
from ..errors import ImagegenError

if TYPE_CHECKING:
    from ..measuring.fits import Fit
    from ..planning.recommend import Recommendation
    from ..selftest.check import Check


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", help="only these: names or folders (those recommended)")
    parser.add_argument("--all", action="store_true", help="every known model")
    parser.add_argument("--no-self-test", action="store_true", help="do not check the kernels")
    parser.add_argument("--json", action="store_true", help="print everything as one block of JSON, for an issue")


def run(args: argparse.Namespace) -> None:
    from ..machine import memory_limit
    from ..measuring.doctor import facts, warnings
    from ..measuring.fits import fits
    from ..measuring.speed import measured_chip, slowness
    from ..measuring.tables import aligned
    from ..planning.recommend import recommend
    from ..precision import on_gpu
    from ..selftest.suite import HEADER, self_test, summary

    known, chip = facts(), measured_chip()
    known["measured"] = f"{chip.teraflops:.3g} TFLOP/s in products, {chip.bandwidth_gb_per_second:.3g} GB/s copied"
    warned = warnings(known) + slowness(chip, known["chip"])
    advice = None if args.model is not None else recommend(memory_limit().usable_bytes, chip, on_gpu())
    narrowed = advice.models if advice and not args.all else []
    found = fits(narrowed if args.model is None else args.model, chip)
    if not args.json:
        width = max(map(len, known))
        lines = [f"{name:<{width}}  {value}" for name, value in known.items()]
        lines += [f"warning: {line}" for line in warned]
        print("\n".join([answer(advice, found, narrowed != []), "", *lines]), flush=True)
    started = time.perf_counter()
    checks = [] if args.no_self_test else list(self_test())
    if args.json:
        print(json_text(as_data(known, warned, advice, found, checks)), end="")
    elif checks:
        right, seconds = sum(check.right for check in checks), time.perf_counter() - started
        print(f"\nself-test: {right} of {len(checks)} are right ({seconds:.1f} s)")
        print(aligned(HEADER, summary(checks)))
    fail(checks, known["mlx"])


def answer(advice: "Recommendation | None", found: "list[Fit]", narrowed: bool) -> str:
    from ..machine import GB, memory_limit
    from ..measuring.tables import NONE, aligned, short

    lines = [f"{memory_limit()}:", *(f"  {line}" for line in advice.lines()), ""] if advice else []
    rows = [
        [fit.model, fit.quant, NONE, NONE, NONE, fit.verdict] if fit.reason else
        [fit.model, fit.quant, short(fit.peak_bytes / GB), short(fit.all_bytes / GB), short(fit.seconds), fit.verdict]
        for fit in found
    ]  # fmt: skip
    lines.append(aligned(("model", "quant", "peak GB", "all GB", "steps at best, s", "on this machine"), rows))
    return "\n".join([*lines, *(["", "all models: mlx-imagegen doctor --all"] if narrowed else [])])


def as_data(
    known: dict[str, str], warned: list[str], advice: "Recommendation | None", found: "list[Fit]", checks: "list[Check]"
) -> dict[str, Any]:
    errors = [check.error if math.isfinite(check.error) else None for check in checks]  # JSON has no NaN, no infinity
    return {
        "machine": known,
        "warnings": warned,
        "recommended": asdict(advice) if advice else None,
        "models": [asdict(fit) | {"verdict": fit.verdict} for fit in found],
        "self_test": [
            asdict(check) | {"error": error, "right": check.right} for check, error in zip(checks, errors, strict=True)
        ],
    }


def fail(checks: "list[Check]", mlx: str) -> None:
    wrong = [check for check in checks if not check.right]
    for check in wrong:
        print(f"wrong: {check}", file=sys.stderr)
    if wrong:
        operations = ", ".join(dict.fromkeys(check.operation for check in wrong))
        raise ImagegenError(
            f"{len(wrong)} of {len(checks)} checks are wrong with this chip and MLX {mlx} ({operations}): pictures "
            "would be wrong, too. Install another version of MLX, and send what `mlx-imagegen doctor --json` prints."
        )
