"""Pictures that the model follows: edges, depths and the like; by which network, how strongly, in which steps.

In: what the user gave as `control`. Out: `Control`s, checked as far as that can be done without their models.
Must not know: control networks, how they are opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..edges import HIGH, LOW, draw_edges, is_drawing
from ..errors import RequestError
from ..families.controls import EDGES
from ..image import fingerprint, open_picture
from ..paths import expanded
from .entries import EntryForm

FORM = EntryForm("control", ("picture", "model", "strength", "kind", "start", "end"))
USUAL = {"strength": 1.0, "kind": None, "start": 0.0, "end": 1.0}
STRENGTH_LIMIT = 10.0


@dataclass(frozen=True)
class Control:
    picture: Image.Image
    model: str | None = None  # the control network; None: the model itself takes the picture
    strength: float = 1.0
    kind: str | None = None  # of the picture, for networks that know several
    start: float = 0.0  # shares of the steps between which it is followed
    end: float = 1.0
    is_photo: bool = False  # of which edges are followed

    def drawn_at(self, size: tuple[int, int]) -> Image.Image:
        """What is followed, in the size of the picture made; edges are drawn at that size."""
        if not self.is_photo:
            return self.picture
        return draw_edges(self.picture.resize(size, Image.Resampling.LANCZOS))

    def described(self) -> dict[str, Any]:
        """For records: the picture by what tells it apart."""
        values = {name: getattr(self, name) for name in FORM.fields[1:]}
        values |= {"edges": [LOW, HIGH]} if self.is_photo else {}
        return {"sha256": fingerprint(self.picture), **{name: v for name, v in values.items() if v is not None}}


def open_controls(given: Any, notes: list[str] | None = None) -> tuple[Control, ...]:
    """Of `control=`: one picture, or a list of pictures and of entries with more."""
    return tuple(_control(entry, notes) for entry in FORM.entries(given))


def control_text(entry: Mapping[str, Any]) -> str:
    """What `parse_control` takes apart."""
    picture, model, *rest = FORM.fields
    named = [f"{name}={entry[name]}" for name in rest if entry.get(name, USUAL[name]) != USUAL[name]]
    return ",".join([entry[picture], *([entry[model]] if entry.get(model) else []), *named])


def parse_control(text: str) -> dict[str, Any]:
    """PICTURE[,MODEL[,STRENGTH[,KIND[,START[,END]]]]] of the command line; later parts may be named, as kind=canny."""
    if expanded(text).exists():  # a name may hold a comma
        return {"picture": text}
    entry: dict[str, Any] = {}
    for place, part in enumerate(text.split(",")):
        name, equals, value = part.partition("=")
        if equals and name in FORM.fields:
            entry[name] = value
        elif place < len(FORM.fields):
            entry[FORM.fields[place]] = part
    return {name: value for name, value in entry.items() if value != ""}


def _control(values: Mapping[str, Any], notes: list[str] | None) -> Control:
    start, end = (FORM.number(name, values.get(name, usual), 0, 1) for name, usual in (("start", 0), ("end", 1)))
    if start >= end:
        raise RequestError(f"control: start {start:g} and end {end:g}: give shares of the steps, the smaller first.")
    picture, kind = open_picture(values["picture"], "control", notes=notes), FORM.text("kind", values.get("kind"))
    is_photo = kind == EDGES and not is_drawing(picture)
    if is_photo and notes is not None:
        notes.append(f"control: kind {EDGES} of a photo: its edges are drawn by Canny's {LOW} and {HIGH}, and followed")
    model, strength = FORM.text("model", values.get("model")), values.get("strength", 1.0)
    strength = FORM.number("strength", strength, 0, STRENGTH_LIMIT)
    return Control(picture, model, strength, kind, start, end, is_photo)
