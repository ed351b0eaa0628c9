"""A picture's record -> the command line and the Python that make the picture again.

In: a record with this server's names, and where the model's files are. Out: text for people to copy.
Must not know: jobs, HTTP.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..request import kinds
from ..request.controls import control_text
from ..request.image_prompts import image_prompt_text
from ..request.kinds import OF_THE_PICTURE, Parameter
from ..request.parameters import PARAMETERS

FILE = "FILE"  # stands for a picture that the record has only a fingerprint of
TEXTS = {kinds.CONTROLS: control_text, kinds.IMAGE_PROMPTS: image_prompt_text}


def command_line(record: Mapping[str, Any]) -> str:
    words = ["mlx-imagegen", "generate"]
    for row, value in _given(record):
        words += [value] if row.name == "prompt" and not value.startswith("-") else _words(row, value)
    return shlex.join(words)


def python_code(record: Mapping[str, Any]) -> str:
    lines = ["from mlx_imagegen import generate", "", "generate(", f"    {record.get('prompt', '')!r},"]
    for row, value in _given(record):
        if row.name != "prompt":
            lines.append(f"    {row.name}={(list(map(tuple, value)) if row.kind is kinds.LORAS else value)!r},")
    return "\n".join([*lines, ")"])


def _given(record: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
    for row in PARAMETERS:
        value = record.get(row.record_key) if row.recorded else None
        if value is not None and value is not False and value != []:
            if row.hashed:  # files in the place of fingerprints; what goes with a picture stays
                several = isinstance(value, list)
                value = [_file(each, f"{FILE}{n}") for n, each in enumerate(value, 1)] if several else FILE
            yield row, value


def _file(recorded: Any, name: str) -> Any:
    if not isinstance(recorded, Mapping):
        return name
    return {"picture": name} | {field: value for field, value in recorded.items() if field not in OF_THE_PICTURE}


def _words(row: Parameter, value: Any) -> list[str]:
    assert row.flag is not None
    if row.kind is kinds.SWITCH:
        return [row.flag]
    if row.kind is kinds.LORAS:
        return [word for file, scale in value for word in (row.flag, f"{file}:{scale:g}")]
    if row.kind in TEXTS:
        return [word for entry in value for word in (row.flag, TEXTS[row.kind](entry))]
    if row.kind is kinds.BOXES:
        return [row.flag, json.dumps(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [row.flag, *map(str, value)]
    return [f"{row.flag}={value}"] if str(value).startswith("-") else [row.flag, str(value)]
