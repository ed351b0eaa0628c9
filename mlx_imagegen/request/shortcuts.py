"""Steps and branches that are not computed: asked for, checked against the model's manifest.

In: what the user gave as `cache` and `guidance_until`. Out: the rule of a step cache, the shares between which steps
are guided.
A manifest's [step_cache] holds what was found for its checkpoint: `fast`, the threshold that the word stands for, and
perhaps `polynomial`, `largest_change`, `in_a_row` and `warmup_share`.
"""

import dataclasses
import math
import re
from typing import Any

from ..errors import RequestError
from ..escaping import quoted
from ..families import family_spec
from ..families.step_cache import CacheRule
from ..hub.manifest import Manifest
from .parameters import limits

FAST = "fast"
SHARES = re.compile(r"([^-]*[^-eE])-(.+)")  # 0.1-0.8, and not 1e-3
OWN = {item.name for item in dataclasses.fields(CacheRule)} - {"threshold"}


def cache_rule(manifest: Manifest, asked: Any, steps: int, notes: list[str]) -> CacheRule | None:
    if asked is None or asked is False:
        return None
    if "step_cache" not in family_spec(manifest.family).capabilities:
        raise RequestError(f"cache: no step of {manifest.name} can be predicted by this library yet; leave it out.")
    table: dict[str, Any] = manifest.extras.get("step_cache", {})
    distilled = manifest.guidance in ("none", "never")  # such a manifest may have the table from its base
    threshold = (None if distilled else table.get("fast")) if asked == FAST else asked
    if threshold is None:
        raise RequestError(
            f"cache {FAST!r}: no threshold is known for {manifest.name}, whose steps differ too much or were not "
            "measured; leave it out, or give a number such as 0.08."
        )
    low, high = limits("cache")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not low < threshold <= high:
        raise RequestError(f"cache {asked!r}: give {FAST!r}, or a threshold above {low:g} and up to {high:g}.")
    own: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items() if name in OWN}
    rule = CacheRule(float(threshold), **own)
    if steps <= rule.warmup(steps) + 1:
        notes.append(f"cache has no effect in {steps} steps: the first {rule.warmup(steps)} and the last are computed")
    return rule


def guided_shares(asked: float | str | None, cfg: float, notes: list[str]) -> tuple[float, float]:
    """From which share of the steps to which a second branch runs."""
    low, high = limits("guidance_until")
    if asked is None:
        return low, high
    both = SHARES.fullmatch(asked) if isinstance(asked, str) else None
    try:
        start, stop = (float(both[1]), float(both[2])) if both else (low, float(asked))
    except (TypeError, ValueError, OverflowError):
        start = stop = math.nan  # for which no comparison holds
    if isinstance(asked, bool) or not low <= start < stop <= high:
        raise RequestError(
            f"guidance_until {quoted(asked)}: give a share of the steps, above {low:g} and up to {high:g}, or two, as "
            "0.1-0.8."
        )
    if cfg <= 1:
        notes.append("guidance_until has no effect without a second branch")
        return low, high
    return start, stop


def as_asked(shares: tuple[float, float]) -> float | str | None:
    """As `guided_shares` reads them again; None where they are all."""
    start, stop = shares
    if start > 0:
        return f"{start:g}-{stop:g}"
    return stop if stop < 1 else None
