"""Pictures that the model follows: edges, depths and the like; by which network, how strongly, in which steps.

In: what the user gave as `control`. Out: `Control`s, checked as far as that can be done without their models.
Must not know: control networks, how they are opened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RequestError
from ..escaping import quoted
from ..image import fingerprint, open_picture
from ..paths import expanded

FIELDS = ("picture", "model", "strength", "kind", "start", "end")
FORM = (
    "control: give pictures, or (picture, model, strength, kind, start, end) of which all but the first may be left out"
)
STRENGTH_LIMIT = 10.0


@dataclass(frozen=True)
class Control:
    picture: Image.Image
    model: str | None = None  # the control network; None: the model itself takes the picture
    strength: float = 1.0
    kind: str | None = None  # of the picture, for networks that know several
    start: float = 0.0  # shares of the steps between which it is followed
    end: float = 1.0

    def described(self) -> dict[str, Any]:
        """For records: the picture by what tells it apart."""
        values = {name: getattr(self, name) for name in FIELDS[1:]}
        return {"sha256": fingerprint(self.picture), **{name: v for name, v in values.items() if v is not None}}


def open_controls(given: Any, notes: list[str] | None = None) -> tuple[Control, ...]:
    """Of `control=`: one picture, or a list of pictures and of entries with more."""
    if given is None:
        return ()
    single = isinstance(given, str | Path | Image.Image | np.ndarray | Mapping)
    entries = [given] if single else given
    if not isinstance(entries, list | tuple):
        raise RequestError(f"{FORM}; this is of the kind {type(given).__name__}.")
    return tuple(_control(entry, notes) for entry in entries)


def parse_control(text: str) -> dict[str, Any]:
    """PICTURE[,MODEL[,STRENGTH[,KIND[,START[,END]]]]] of the command line; later parts may be named, as kind=canny."""
    if expanded(text).exists():  # a name may hold a comma
        return {"picture": text}
    entry: dict[str, Any] = {}
    for place, part in enumerate(text.split(",")):
        name, equals, value = part.partition("=")
        if equals and name in FIELDS:
            entry[name] = value
        elif place < len(FIELDS):
            entry[FIELDS[place]] = part
    return {name: value for name, value in entry.items() if value != ""}


def _control(entry: Any, notes: list[str] | None) -> Control:
    if isinstance(entry, str | Path | Image.Image | np.ndarray):
        return Control(open_picture(entry, "control", notes=notes))
    values = dict(zip(FIELDS, entry, strict=False)) if isinstance(entry, Sequence) else entry
    if not isinstance(values, Mapping) or "picture" not in values or not set(values) <= set(FIELDS):
        raise RequestError(f"{FORM}; {_shown(entry)} is none of these.")
    if isinstance(entry, Sequence) and len(entry) > len(FIELDS):
        raise RequestError(f"{FORM}; {len(entry)} are given.")
    values = {name: value for name, value in values.items() if value is not None}
    start, end = (_number(name, values.get(name, usual), 0, 1) for name, usual in (("start", 0), ("end", 1)))
    if start >= end:
        raise RequestError(f"control: start {start:g} and end {end:g}: give shares of the steps, the smaller first.")
    return Control(
        open_picture(values["picture"], "control", notes=notes),
        _text("model", values.get("model")),
        _number("strength", values.get("strength", 1.0), 0, STRENGTH_LIMIT),
        _text("kind", values.get("kind")),
        start,
        end,
    )


def _number(name: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError
    except (TypeError, ValueError):
        raise RequestError(f"control: {name} {quoted(value)}: give a number from {low:g} to {high:g}.") from None
    return number


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str | Path):
        return None if value is None else str(value)
    raise RequestError(f"control: {name} {quoted(value)}: give text.")


def _shown(entry: Any) -> str:
    return f"an entry of the kind {type(entry).__name__}"
