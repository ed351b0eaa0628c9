"""The plan's lower bound and its estimate next to every row of benchmarks/macs.

The estimate of a row uses only the other rows. Rows whose source gives no chip are shown for each possible chip; if the
bound is above the measured time, it was not that chip. Nothing is run.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

from collections.abc import Iterator

from mlx_imagegen.measuring.tables import NONE, markdown, short
from mlx_imagegen.planning.measurements import (
    Measurement,
    bound_per_step,
    estimate,
    is_plannable,
    is_usable,
    measurements,
)

HEADER = (
    "chip", "model", "quant", "size", "program", "measured s/step", "plan: bound", "share of it", "plan: estimate",
    "estimate / measured", "estimated by", "source",
)  # fmt: skip


def rows() -> list[list[str]]:
    return [line for each in measurements() if is_plannable(each) for line in lines_of(each)]


def lines_of(each: Measurement) -> Iterator[list[str]]:
    others = [other for other in measurements() if is_usable(other) and other != each]
    source = f"published: {each.source}" if each.published else each.source
    for chip in each.chips:
        bound = bound_per_step(each, chip)
        found = estimate(chip, each.model, each.quant, others)
        seconds = found.seconds(bound) if found else None
        yield [
            chip if len(each.chips) == 1 else f"{chip}?", each.model, each.quant or "none",
            f"{each.width}x{each.height}", each.program, short(each.seconds_per_step), short(bound),
            f"{bound / each.seconds_per_step:.0%}", short(seconds),
            f"{seconds / each.seconds_per_step:.2f}" if seconds else NONE,
            f"{found.by[0].chips[0]} {found.by[0].model}" if found else NONE, source,
        ]  # fmt: skip


def main() -> None:
    print(markdown(HEADER, rows()))


if __name__ == "__main__":
    main()
