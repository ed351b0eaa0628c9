"""All kinds of checks, in the order in which they run, and a summary for people.

In: nothing, or the kinds to run. Out: `Check`s, one after the other. Must not know: the command line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from .attention import attention_checks
from .check import Check
from .convolutions import convolution_checks
from .elementwise import elementwise_checks
from .movement import movement_checks
from .packed import packed_checks
from .pictures import picture_checks
from .products import product_checks
from .threads import thread_checks

KINDS: dict[str, Callable[[], Iterator[Check]]] = {
    "dense products": product_checks,
    "packed products": packed_checks,
    "attention": attention_checks,
    "norms, rotary positions and activations": elementwise_checks,
    "convolutions": convolution_checks,
    "moving numbers": movement_checks,
    "threads": thread_checks,
    "demo pictures": picture_checks,
}


def self_test(kinds: Iterable[str] = tuple(KINDS)) -> Iterator[Check]:
    for kind in kinds:
        yield from KINDS[kind]()


def summary(checks: Sequence[Check]) -> list[list[str]]:
    """A row for each operation: how many checks passed, the largest error with its bound, and the case it is from."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.operation, []).append(check)
    return [_row(operation, group) for operation, group in groups.items()]


HEADER = ("operation", "right", "worst error", "bound", "of")


def _row(operation: str, group: Sequence[Check]) -> list[str]:
    # The one nearest to its bound, and before all others one that has no result.
    worst = max(group, key=lambda check: (not check.right, check.error / check.limit if check.limit else check.error))
    right = f"{sum(check.right for check in group)} of {len(group)}"
    return [operation, right, f"{worst.error:.1e}", f"{worst.limit:.1e}" if worst.limit else "0", worst.case]
