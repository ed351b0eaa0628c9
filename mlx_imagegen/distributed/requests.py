"""Sends requests from rank 0 to the others, together with the pictures and arrays that they name.

In: generate()'s parameters, as the command line has them. Out: the same, on hosts that have only the files of the model
and the LoRAs. Must not know: what a parameter does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, file_errors
from ..paths import expanded
from ..request import controls, image_prompts
from ..request.job import seeds_of
from ..request.kinds import ARRAY, ARRAYS, CONTROLS, IMAGE_PROMPTS, PICTURE, PICTURES
from ..request.parameters import BY_NAME

FORMS = image_prompts.FORMS | {controls.FORM.parameter: controls.FORM}
NAME, CONTENTS = "file_name", "contents"


def with_seeds(request: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with every seed written out, so that all ranks have the same ones."""
    rest = {name: value for name, value in request.items() if name not in ("seed", "count")}
    return {**rest, "seed": seeds_of(request.get("seed"), request.get("count"))}


def packed(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the contents of its picture files, ready to send."""
    return {name: _packed(name, value) for name, value in request.items()}


def unpacked(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The received request, with its pictures written to `folder`."""
    return {name: _unpacked(value, folder / name) for name, value in request.items()}


def _packed(name: str, value: Any) -> Any:
    kind = BY_NAME[name].kind
    if value is None:
        return None
    if kind in (CONTROLS, IMAGE_PROMPTS):
        form = FORMS[name]
        return [{**entry, "picture": _file(name, entry["picture"])} for entry in form.entries(value)]
    if kind in (PICTURE, ARRAY):
        return _file(name, value)
    if kind in (PICTURES, ARRAYS):
        return [_file(name, path) for path in value] if isinstance(value, list | tuple) else _file(name, value)
    return str(value) if isinstance(value, Path) else value


@file_errors()
def _file(name: str, given: Any) -> Any:
    """What is no path is checked where all parameters are."""
    if not isinstance(given, str | Path):
        return given
    path = expanded(given)
    try:
        return {NAME: path.name, CONTENTS: path.read_bytes()}
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: {path} is not there.") from error


def _unpacked(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping) and value.keys() == {NAME, CONTENTS}:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(value[NAME]).name
        path.write_bytes(value[CONTENTS])
        return str(path)
    if isinstance(value, Mapping):
        return {key: _unpacked(inner, folder) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_unpacked(inner, folder / str(place)) for place, inner in enumerate(value)]
    return value
