"""Lists of pictures with what goes with each: the form that `control`, `redux` and the like share.

In: what the user gave for a parameter. Out: a mapping by field an entry, the picture and the rest unchecked; and checks
of single fields. Must not know: what any field means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RequestError
from ..escaping import quoted

PICTURE_KINDS = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class EntryForm:
    parameter: str
    fields: tuple[str, ...]  # of an entry, in the order in which they may be given by place; the picture is the first

    def entries(self, given: Any) -> list[dict[str, Any]]:
        """One picture, or a list of pictures and of entries with more; fields that are None are left out."""
        if given is None:
            return []
        single = isinstance(given, PICTURE_KINDS | Mapping)
        entries = [given] if single else given
        if not isinstance(entries, list | tuple):
            raise RequestError(f"{self._asked_for}; this is of the kind {type(given).__name__}.")
        return [self._entry(entry) for entry in entries]

    def _entry(self, entry: Any) -> dict[str, Any]:
        if isinstance(entry, PICTURE_KINDS):
            return {self.fields[0]: entry}
        if isinstance(entry, Sequence) and len(entry) > len(self.fields):
            raise RequestError(f"{self._asked_for}; {len(entry)} are given.")
        values = dict(zip(self.fields, entry, strict=False)) if isinstance(entry, Sequence) else entry
        if not isinstance(values, Mapping) or self.fields[0] not in values or not set(values) <= set(self.fields):
            raise RequestError(f"{self._asked_for}; an entry of the kind {type(entry).__name__} is none of these.")
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _asked_for(self) -> str:
        names = ", ".join(self.fields)
        return f"{self.parameter}: give pictures, or ({names}) of which all but the first may be left out"

    def number(self, name: str, value: Any, low: float, high: float) -> float:
        try:
            number = float(value)
            if isinstance(value, bool) or not low <= number <= high:
                raise ValueError
        except (TypeError, ValueError):
            raise RequestError(
                f"{self.parameter}: {name} {quoted(value)}: give a number from {low:g} to {high:g}."
            ) from None
        return number

    def text(self, name: str, value: Any) -> str | None:
        if value is None or isinstance(value, str | Path):
            return None if value is None else str(value)
        raise RequestError(f"{self.parameter}: {name} {quoted(value)}: give text.")
