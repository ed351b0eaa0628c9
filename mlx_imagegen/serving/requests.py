"""What a client asks for -> a `Request` with everything looked up and checked, before it may wait for the worker.

In: a request's fields, named like generate()'s parameters; which there are, and of what kind, is the parameter table.
Out: a `Request`, or a RequestError that says what is wrong. Pictures come as their bytes, models and LoRAs by name.
Must not know: HTTP, the names that other interfaces give to the fields, the worker.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import RequestError
from ..hub.abilities import networks
from ..preflight import check_networks
from ..request import kinds
from ..request.controls import FORM as CONTROL_FORM
from ..request.image_prompts import FORMS as IMAGE_FORMS
from ..request.job import Job as PictureJob
from ..request.job import resolve
from ..request.kinds import Parameter
from ..request.options import check_types
from ..request.parameters import ALIASES, BY_NAME, PARAMETERS, check_names
from .catalogue import Catalogue, Entry, check_quant, size_multiple
from .pictures import read_picture, shortened

NOT_OVER_THE_WIRE = (kinds.CALLBACK, kinds.ARRAY, kinds.ARRAYS)
SERVERS_CHOICE = {
    "resident": "the server decides what stays in memory; leave it out.",
    "upsample": "this server draws prompts as they are; write the caption first, and give it as the prompt.",
}
TAKEN = {row.name: row for row in PARAMETERS if row.kind not in NOT_OVER_THE_WIRE and row.name not in SERVERS_CHOICE}
UNITS = {"steps": "steps", "pixels": "pixels a picture", "count": "pictures a request"}
ENTRY_FORMS = {"control": CONTROL_FORM, **IMAGE_FORMS}
LONGEST_NUMBER = 20  # digits; the largest seed has as many
AS_TEXT = (kinds.TEXT, kinds.SHAPE)  # what a form's field is; fields of other kinds are written as in JSON


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for."""

    pixels: int = 2048 * 2048
    count: int = 10
    steps: int = 200
    prompt_chars: int = 20_000
    pictures: int = 16  # that are sent
    sent_pixels: int = 100_000_000  # of all of them
    loras: int = 8

    def check(self, jobs: Sequence[PictureJob]) -> None:
        """Raises for pictures that this server does not draw."""
        settings = jobs[0].settings
        self.check_value("steps", settings.steps)
        self.check_value("pixels", settings.width * settings.height)

    def check_value(self, name: str, value: int) -> None:
        limit: int = getattr(self, name)
        if value > limit:
            raise RequestError(f"{name} {value}: this server draws up to {limit} {UNITS[name]}; ask for fewer.")


@dataclass(frozen=True)
class Request:
    entry: Entry
    quant: str | None
    loras: tuple[tuple[Path, float], ...]
    lora_partial: bool
    jobs: list[PictureJob] = field(repr=False)  # one a picture; with the pictures that were sent


def read_request(fields: Mapping[str, Any], catalogue: Catalogue, limits: Limits, quant: str | None = None) -> Request:
    """`quant`: where the fields name none."""
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(given.get("lora"), str):
        given["lora"] = [given["lora"]]
    for name in given:
        if (own := ALIASES.get(name, name)) in SERVERS_CHOICE:
            raise RequestError(f"{name}: {SERVERS_CHOICE[own]}")
    check_names(given, tuple(TAKEN))
    check_types(given)
    prompt = _prompt(given.pop("prompt", None), limits)
    entry = catalogue.model(given.pop("model", None))
    packing = check_quant(given.pop("quant")) if "quant" in given else None if entry.is_packed else quant
    loras = tuple(_loras(given.pop("lora", ()), catalogue, limits))
    lora_partial = given.pop("lora_partial", False)
    _check_count(given, limits)
    parameters = {name: _opened(TAKEN[name], value, limits) for name, value in given.items()}
    _check_sent(parameters, limits)
    jobs = resolve(entry.manifest, size_multiple(entry), prompt, **parameters)
    limits.check(jobs)
    check_networks(entry.manifest, jobs, loras)
    return Request(entry, packing, loras, lora_partial, jobs)


def from_text(name: str, text: str) -> Any:
    """A form's field, or one of several of that name, as its parameter takes it."""
    row = BY_NAME.get(ALIASES.get(name, name))
    if row is None or row.kind in AS_TEXT or (row.kind is kinds.RADIUS and not text.isdecimal()):
        return text
    if text in ("", "null"):
        return None
    try:
        return parse_json(text.lower() if row.kind is kinds.SWITCH else text)
    except RequestError:
        if row.kind in (kinds.LORAS, kinds.NUMBER_OR_TEXT):  # a name
            return text
        raise RequestError(f"{name} {shortened(text)}: give {row.kind.description or 'a number or a list'}.") from None


def parse_json(text: str | bytes) -> Any:
    """Strictly: without NaN and infinities, of bounded depth."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number)
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8 text.") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply.") from None
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON ({str(error)[:100]}).") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _prompt(prompt: Any, limits: Limits) -> str:
    if not isinstance(prompt, str):
        raise RequestError("prompt is missing: say what the picture should show, as text.")
    if len(prompt) > limits.prompt_chars:
        raise RequestError(f"prompt has {len(prompt)} characters, and this server reads up to {limits.prompt_chars}.")
    check_unicode("prompt", prompt)
    return prompt


def check_unicode(name: str, text: str) -> None:
    """JSON can hold halves of characters, which no encoding takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds halves of characters (lone surrogates), which are no text.") from None


def _check_count(given: Mapping[str, Any], limits: Limits) -> None:
    """Before jobs are made of it."""
    count, seed = given.get("count"), given.get("seed")
    number = count if isinstance(count, int) else len(seed) if isinstance(seed, list) else 1
    limits.check_value("count", number)


def _loras(given: Iterable[Any], catalogue: Catalogue, limits: Limits) -> Iterable[tuple[Path, float]]:
    """Names, or [name, scale]."""
    items = list(given)
    if len(items) > limits.loras:
        raise RequestError(f"lora: {len(items)} are given, and this server merges up to {limits.loras}.")
    for item in items:
        name, scale = item if isinstance(item, list) and len(item) == 2 else (item, 1.0)
        if not isinstance(name, str) or isinstance(scale, bool) or not isinstance(scale, int | float):
            raise RequestError(f"lora {shortened(item)}: give a name, or [name, scale].")
        yield catalogue.lora(name).path, float(scale)


def _opened(row: Parameter, value: Any, limits: Limits) -> Any:
    """With pictures read; all other values are as the library takes them."""
    if row.kind is kinds.TEXT:
        check_unicode(row.name, value)
    if row.kind is kinds.PICTURE:
        return _picture(value, row.name)
    if row.kind in (kinds.CONTROLS, kinds.IMAGE_PROMPTS):
        return _entries(row.name, value, limits)
    if row.kind is not kinds.PICTURES:
        return value
    given = value if isinstance(value, list) else [value]
    if len(given) > limits.pictures:
        raise RequestError(
            f"{row.name}: {len(given)} pictures are given, and this server takes up to {limits.pictures}."
        )
    return [_picture(each, row.name) for each in given]


def _entries(name: str, value: Any, limits: Limits) -> list[dict[str, Any]]:
    """Pictures, each alone or with what goes with it; networks by their names alone: nothing of this machine's files is
    opened for a client."""
    if isinstance(value, list) and len(value) > limits.pictures:
        raise RequestError(f"{name}: {len(value)} pictures are given, and this server takes up to {limits.pictures}.")
    entries = ENTRY_FORMS[name].entries(value)
    for entry in entries:
        network = entry.get("model")
        if network is not None and network not in networks(name):
            raise RequestError(f"{name}: model {shortened(network)}: give one of {', '.join(networks(name))}.")
    return [entry | {"picture": _picture(entry["picture"], name)} for entry in entries]


def _check_sent(parameters: Mapping[str, Any], limits: Limits) -> None:
    """They wait in memory, unpacked."""
    values = [each for value in parameters.values() for each in (value if isinstance(value, list) else [value])]
    values = [value["picture"] if isinstance(value, dict) and "picture" in value else value for value in values]
    pixels = sum(value.width * value.height for value in values if isinstance(value, Image.Image))
    if pixels > limits.sent_pixels:
        raise RequestError(
            f"the pictures that are sent have {pixels / 1e6:.0f} million pixels in all, and this server takes up to "
            f"{limits.sent_pixels / 1e6:.0f} million; make them smaller."
        )


def _picture(value: Any, name: str) -> Image.Image:
    return value if isinstance(value, Image.Image) else read_picture(value, name)
