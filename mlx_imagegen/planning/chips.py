"""What Apple's chips can do at most: bytes from memory and arithmetic, each second.

Must not know: models, plans.
"""

import re
from dataclasses import dataclass

from ..errors import RequestError


@dataclass(frozen=True)
class Chip:
    """Both numbers are what the largest variant has."""

    bandwidth_gb_per_second: float
    teraflops: float


# Bandwidths: Apple's newsroom and specification pages. Teraflops, M1 to M4: GPU cores x 128 lanes x 2 x clock (1.28,
# 1.40, 1.38 and 1.58 GHz, from public measurements of the GPUs; Apple has published teraflops for M1 and M2 only, and
# those agree); float16 is no faster than float32 there. M5: cores x 1024 x 1.75 GHz, its matrix units' float16, as T.
# Zakharko's public microbenchmark of the same units in the A19 estimates it.
SOURCES = "GB/s: Apple's specifications; TFLOP/s: GPU cores x lanes x clock, M5 by its matrix units"
CHIPS = {
    "m1": Chip(68, 2.6), "m1-pro": Chip(200, 5.2), "m1-max": Chip(400, 10.4), "m1-ultra": Chip(800, 20.8),
    "m2": Chip(100, 3.6), "m2-pro": Chip(200, 6.8), "m2-max": Chip(400, 13.6), "m2-ultra": Chip(800, 27.2),
    "m3": Chip(100, 3.5), "m3-pro": Chip(150, 6.4), "m3-max": Chip(400, 14.1), "m3-ultra": Chip(819, 28.3),
    "m4": Chip(120, 4.0), "m4-pro": Chip(273, 8.1), "m4-max": Chip(546, 16.2),
    "m5": Chip(153, 17.9), "m5-pro": Chip(307, 35.8), "m5-max": Chip(614, 71.7),
}  # fmt: skip


def chip_named(name: str) -> Chip:
    if name not in CHIPS:
        raise RequestError(f"no chip is called '{name}' here; known: {', '.join(CHIPS)}.")
    return CHIPS[name]


def chip_of(device: str) -> str | None:
    """By a device's name, "Apple M2 Max"; None if it is not in the table."""
    found = re.search(r"\bM(\d+)(?: (Pro|Max|Ultra))?", device)
    name = "-".join(part.lower() for part in (f"m{found[1]}", found[2]) if part) if found else ""
    return name if name in CHIPS else None
