"""Another layout's module names as a table: each of its modules -> ours, as runs of its rows.

In: a table. Out: a `Rename` for its files, and the names by which LoRAs in that layout call our modules.
Must not know: which layouts exist (families' keys.py).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .names import RowRange

BLOCK = re.compile(r"_blocks\.(?:[a-z]\w*\.)?(\d+)\.")  # a block's number in a path
Parts = tuple[tuple[str, int], ...]  # our modules, each with how many equal row units it takes


@dataclass(frozen=True)
class NameTable:
    modules: Mapping[str, Parts]  # `{i}` stands for a block's number
    swapped: Collection[str] = ()  # whose rows are in two halves, the second of ours first

    def targets(self, module: str) -> list[RowRange]:
        """One of its modules -> ours; empty if it is not in the table."""
        number = BLOCK.search(module)
        start, stop = number.span(1) if number else (0, 0)
        pattern = f"{module[:start]}{{i}}{module[stop:]}" if number else module
        return self._targets(pattern, number[1] if number else "")

    def rename(self, name: str) -> Iterable[RowRange]:
        """A tensor's name; one outside the table stays as it is and is reported as unexpected."""
        module, _, kind = name.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        for target in self.targets(module) or [RowRange(module)]:
            yield RowRange(f"{target.name}.{kind}", target.start, target.share, target.of, target.swap_halves)

    def names(self, modules: Iterable[str]) -> dict[str, list[RowRange]]:
        """What it calls our `modules`, all that the table has."""
        blocks = {number[1] for number in map(BLOCK.search, modules) if number}
        return {
            pattern.format(i=number): self._targets(pattern, number)
            for pattern in self.modules
            for number in (blocks if "{i}" in pattern else [""])
        }

    def _targets(self, pattern: str, number: str) -> list[RowRange]:
        """Runs of rows, one below another."""
        parts = self.modules.get(pattern, ())
        of = sum(share for _, share in parts)
        out, start = [], 0
        for name, share in parts:
            out.append(RowRange(name.format(i=number), start, share, of, pattern in self.swapped))
            start += share
        return out
