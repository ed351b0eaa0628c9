"""Places of this machine in a picture's record: left out of pictures, which are passed on, but for the file's name.

In: a record, with its report. Out: the same with "…/name" for "/home/someone/models/name", and which fields of a record
that was read have to be given again. Must not know: what the files hold, how a record is stored.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

LEFT_OUT = "…/"  # stands for the folders above a file
PLACES = ("model", "quant", "lora")  # the fields that may name a place


def without_places(record: Mapping[str, Any]) -> dict[str, Any]:
    """The report's notes name LoRAs, too."""
    shortened = {path: LEFT_OUT + PurePath(path).name for _, path in _values(record) if PurePath(path).is_absolute()}
    longest_first = dict(sorted(shortened.items(), key=lambda pair: -len(pair[0])))
    return {
        name: _replaced(value, longest_first) if name in (*PLACES, "report") else value
        for name, value in record.items()
    }


def fields_to_give(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields whose places were left out, each with the name of the file or folder."""
    return [(field, value.removeprefix(LEFT_OUT)) for field, value in _values(record) if value.startswith(LEFT_OUT)]


def is_same_place(recorded: object, given: str) -> bool:
    """Whether a record's model may be the one that is given: of the same name, where its place was left out."""
    return recorded == given or (
        isinstance(recorded, str) and recorded.startswith(LEFT_OUT) and recorded == LEFT_OUT + PurePath(given).name
    )


def _values(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in PLACES:
        value = record.get(field)
        items = value if isinstance(value, list | tuple) else [value]
        for each in (item[0] if isinstance(item, list | tuple) and item else item for item in items):
            if isinstance(each, str):
                yield field, each


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for path, name in names.items():
            value = value.replace(path, name)
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(item, names) for key, item in value.items()}
    return [_replaced(item, names) for item in value] if isinstance(value, list | tuple) else value
