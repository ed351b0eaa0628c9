"""Boxes of a layout: those that the user gives, and the table in which the upsampler answers.

In: boxes in shares of the picture's sides, and the upsampler's answer: a caption that cites ids, and a JSON list of
rows. Out: the rows that the upsampler is shown, in thousandths, and the answer with the user's rows in its table.
Must not know: models, prompts' templates.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ..errors import RequestError
from ..escaping import quoted

CANVAS = 1000
SAME = 0.9  # of two boxes: the shared part of what both cover, from which on they are one box
ID = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ORIGIN = re.compile(r"ref_image_\d+|target")
PLACES = ("bbox", "tgt_bbox", "src_bbox")
KEYS = frozenset({"id", "desc", "from", *PLACES})

Row = dict[str, Any]


def locked_rows(boxes: Any) -> list[Row]:
    """The user's boxes as rows of the table: {"id", "desc", "bbox"}, each bbox [y_min, x_min, y_max, x_max] in 0..1; in
    an edit {"id", "desc", "from", "src_bbox", "tgt_bbox"} as well."""
    if not isinstance(boxes, list | tuple) or not boxes:
        raise RequestError(
            'boxes: give a list of boxes, each as {"id": "cat_1", "desc": "a cat", "bbox": [y, x, y, x]}.'
        )
    rows = [_locked(box, f"boxes: box {number}") for number, box in enumerate(boxes, start=1)]
    for number, row in enumerate(rows, start=1):
        row["id"] = row["id"] or f"obj_{number}"
    ids = [row["id"] for row in rows]
    if twice := [each for each in ids if ids.count(each) > 1]:
        raise RequestError(f"boxes: two have the id {quoted(twice[0])}; give each its own.")
    return rows


def _locked(box: Any, where: str) -> Row:
    if not isinstance(box, Mapping) or set(box) - KEYS:
        raise RequestError(f"{where} is {quoted(box)}: give a table of {', '.join(sorted(KEYS))}.")
    for name in ("id", "desc", "from"):
        if not isinstance(box.get(name, ""), str | None):
            raise RequestError(f"{where}: its {name} is {quoted(box[name])}; give text.")
    common = {"id": box.get("id") or "", "desc": box.get("desc") or ""}
    places = {name: _thousandths(box[name], f"{where}: its {name}") for name in PLACES if box.get(name) is not None}
    if "bbox" in places:
        return {"id": common["id"], "bbox": places["bbox"], "desc": common["desc"]}
    if not places:
        raise RequestError(f"{where} has no place; give bbox, or for an edit src_bbox, tgt_bbox or both.")
    moved = {"from": box.get("from") or "", "src_bbox": places.get("src_bbox"), "tgt_bbox": places.get("tgt_bbox")}
    return {"id": common["id"], **moved, "desc": common["desc"]}


def _thousandths(box: Any, where: str) -> list[int]:
    numbers = list(box) if isinstance(box, list | tuple) else []
    sound = len(numbers) == 4 and all(_is_number(each) and 0 <= each <= 1 for each in numbers)
    if not sound or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise RequestError(
            f"{where} is {quoted(box)}: give [y_min, x_min, y_max, x_max], as shares of the sides from 0 to 1."
        )
    return [round(each * CANVAS) for each in numbers]


def reconciled(answer: str, locked: Sequence[Row]) -> str:
    """The caption and its table: the user's rows as given, with the upsampler's descriptions; then its own, where they
    are sound and cited. A box that it planned again under another id takes the user's id."""
    caption, rows = split_answer(answer)
    renamed = _renamed(rows, locked)
    rows = [row | {"id": renamed[row["id"]]} if _id(row) in renamed else row for row in rows]
    for old, new in renamed.items():
        caption = caption.replace(f"<{old}>", f"<{new}>")
    said = {row["id"]: row.get("desc") for row in rows if isinstance(row.get("id"), str)}
    table = [lock | {"desc": _text(said.get(lock["id"])) or lock["desc"]} for lock in locked]
    for row in rows:
        if (added := _added(row, caption)) and all(added["id"] != each["id"] for each in table):
            table.append(added)
    return f"{caption} {json.dumps(table, ensure_ascii=False)}"


def split_answer(answer: str) -> tuple[str, list[Row]]:
    """The caption, and the tables of the shortest JSON list that ends the answer."""
    for place in (found.start() for found in reversed(list(re.finditer(r"\[", answer)))):
        try:
            rows = json.loads(answer[place:])
        except (ValueError, RecursionError):
            continue
        if isinstance(rows, list):
            return answer[:place].rstrip(), [row for row in rows if isinstance(row, dict)]
    return answer.strip(), []


def _renamed(rows: Sequence[Row], locked: Sequence[Row]) -> dict[Hashable, str]:
    """By the upsampler's id, the user's for the same box."""
    renamed: dict[Hashable, str] = {}
    own, taken = {_id(row) for row in rows}, {lock["id"] for lock in locked}
    for lock in locked:
        place = _place(lock)
        if lock["id"] in own or place is None:
            continue
        for row in rows:
            box = sound_box(_place(row))
            free = _id(row) is not None and _id(row) not in renamed and _id(row) not in taken
            if free and box is not None and overlap(box, place) >= SAME:
                renamed[_id(row)] = lock["id"]
                break
    return renamed


def _id(row: Row) -> Hashable:
    """None for what is no id."""
    return row["id"] if isinstance(row.get("id"), str | int | float) else None


def _place(row: Row) -> Any:
    return next((row[name] for name in PLACES if row.get(name)), None)


def _added(row: Row, caption: str) -> Row | None:
    """A row of the upsampler's own, if it is sound and the caption cites it."""
    name, desc = row.get("id"), _text(row.get("desc"))
    if not isinstance(name, str) or not ID.fullmatch(name) or f"<{name}>" not in caption or not desc:
        return None
    if box := sound_box(row.get("bbox")):
        return {"id": name, "bbox": box, "desc": desc}
    origin, places = row.get("from"), {name: row.get(name) for name in ("src_bbox", "tgt_bbox")}
    sound = {name: sound_box(place) for name, place in places.items()}
    if any(place is not None and sound[name] is None for name, place in places.items()) or not any(sound.values()):
        return None
    if not isinstance(origin, str) or not ORIGIN.fullmatch(origin):
        return None
    is_new = origin == "target"
    return None if is_new == bool(sound["src_bbox"]) else {"id": name, "from": origin, **sound, "desc": desc}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def sound_box(box: Any) -> list[float] | None:
    """In thousandths; None for what is no such box: one of shares alone is none."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    top, left, bottom, right = box
    inside = 0 <= top < bottom <= CANVAS and 0 <= left < right <= CANVAS
    return list(box) if inside and max(box) > 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """What both cover, as a share of what either does."""
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / whole if whole > 0 else 0.0
