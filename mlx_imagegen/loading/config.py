"""config.json -> frozen dataclass.

A component's config is a frozen dataclass whose fields are the keys of its config.json. Keys that the port has no use
for stand in the class's `IGNORED`; any other key is an error, because a key nobody reads may change the picture. Every
field has a kind and, if it is a number, a range: the one that it is annotated with, or else the one of its name.
Knows nothing about tensors.
"""

import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ..documents import read_json
from ..errors import ConfigError
from ..escaping import quoted, shown

__all__ = ["Config", "Range", "read_json"]

# Bookkeeping that transformers and diffusers write into every config.json.
BOOKKEEPING = frozenset(
    "_class_name _diffusers_version _name_or_path _commit_hash architectures model_type torch_dtype dtype "
    "transformers_version quantization quantization_config mlx_imagegen".split()
)


SHOWN_FIELDS = 4  # in a message
MOST_ENTRIES = 10_000  # of a list or a table
LONGEST_TEXT = 100  # where a field is not annotated with TEXT


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be, both ends included: a field is annotated with it."""

    low: float
    high: float


WIDTH = Range(1, 2**18)  # of a whole number that says nothing else
NUMBER = Range(-1e12, 1e12)  # of any other
POSITIVE = Range(1e-12, 1e12)
LAYERS = Range(0, 1000)  # of which a stack has that many
HEADS = Range(1, 4096)
MANY = Range(1, 2**31)  # words, pixels
INDEX = Range(0, 2**31)  # of an id, of a layer
EXPONENT = Range(-20, 20)
COLOURS = Range(3, 3)
TEXT = Range(0, 10_000)  # characters: names of files, sentences
# What a field is whose annotation gives no range, by the end of its name; the first that matches.
BY_NAME = (
    (int, r"(layers|depth|blocks|layers_per_block)$", LAYERS),
    (int, r"heads$", HEADS),
    (int, r"(area|pixels)$", MANY),
    (float, r"(eps|epsilon|theta|scaling_factor|ratio)$", POSITIVE),
)


@dataclasses.dataclass(frozen=True)
class Config:
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    # What the file may call itself, as `_class_name` or `model_type`; without any, readers check it themselves.
    CLASSES: ClassVar[frozenset[str]] = frozenset()
    ONLY: ClassVar[Mapping[str, object]] = {}  # fields of which this port knows one value
    REMEDY: ClassVar[str] = "take the file from the model's repository"

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        """Takes the fields out of `data`; `where` names the file in errors."""
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is {quoted(data)}, where a table of fields is needed.")
        cls._check_class(data, where)
        values, missing = read_fields(cls, data, where)
        unread = sorted(set(data) - set(cls.__dataclass_fields__) - cls.IGNORED - BOOKKEEPING)
        if missing:
            raise ConfigError(
                f"{where}: {_fields(missing)} missing; the file is not a {cls.__name__.removesuffix('Config')} config, "
                "or it was cut. Download it again, or take it from the model's repository."
            )
        if unread:
            raise ConfigError(
                f"{where}: {_fields(unread)} not known to this port, and a field that is not read could change the "
                "picture. This is a newer or another architecture; remove the field only if you know it has no effect."
            )
        config = cls(**values)
        only = ((field, quoted(value)) for field, value in cls.ONLY.items() if getattr(config, field) != value)
        for field, needed in itertools.chain(only, config.misfits()):
            raise ConfigError(
                f"{where}: field '{field}' is {quoted(getattr(config, field))}, where {needed} is needed; {cls.REMEDY}."
            )
        return config

    def misfits(self) -> Iterator[tuple[str, str]]:
        """Each field whose value this port does not know, or that does not fit the others, and what is needed."""
        yield from ()

    @classmethod
    def _check_class(cls, data: dict[str, Any], where: str | Path) -> None:
        named = data.get("_class_name", data.get("model_type"))
        if cls.CLASSES and named is not None and str(named) not in cls.CLASSES:
            raise ConfigError(
                f"{where}: this is a {shown(named)}, and here a {' or '.join(sorted(cls.CLASSES))} is needed: another "
                "model's file. Take it from the model's repository."
            )


def read_fields(kind: type[Any], data: Mapping[str, Any], where: str | Path) -> tuple[dict[str, Any], list[str]]:
    """The fields of a dataclass out of `data`, checked, and the names of those that are needed and not there."""
    hints = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    missing = []
    for field in dataclasses.fields(kind):
        if field.name in data:
            limits = range_of(field.name, hints[field.name])
            values[field.name] = _checked(data[field.name], hints[field.name], f"{where}: field '{field.name}'", limits)
        elif field.default is field.default_factory is dataclasses.MISSING:
            missing.append(field.name)
    return values, missing


def read_part(kind: type[Any], value: Any, where: str | Path) -> Any:
    """A dataclass out of a table: a `Config` knows all of its keys, any other takes what it needs."""
    if issubclass(kind, Config):
        return kind.read(value, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {quoted(value)}, where a table of fields is needed.")
    values, missing = read_fields(kind, value, where)
    if missing:
        raise ConfigError(f"{where}: {_fields(missing)} missing; take the file that it was made from.")
    return kind(**values)


def read_table(data: Mapping[str, Any], key: str, where: str | Path) -> dict[str, Any]:
    """A table within a table; empty where it is not there."""
    table = data.get(key) or {}
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: field '{key}' is {quoted(table)}, where a table of fields is needed.")
    return table


def range_of(name: str, hint: Any) -> Range | None:
    """What a field's name says of its numbers; None if nothing."""
    return next((limits for kind, end, limits in BY_NAME if kind in _kinds(hint) and re.search(end, name)), None)


def _kinds(hint: Any) -> set[Any]:
    inner = typing.get_args(hint)
    return {hint}.union(*map(_kinds, inner)) if inner else {hint} if isinstance(hint, type) else set()


def _fields(names: list[str]) -> str:
    quoted = ", ".join(f"'{shown(name)}'" for name in names[:SHOWN_FIELDS])
    quoted += f" and {len(names) - SHOWN_FIELDS} more" if len(names) > SHOWN_FIELDS else ""
    return f"field {quoted} is" if len(names) == 1 else f"fields {quoted} are"


def _checked(value: Any, hint: Any, where: str, limits: Range | None = None) -> Any:
    """`value` as the annotated type: lists become tuples, whole numbers may stand for floats; nothing else changes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        return _checked(value, arguments[0], where, arguments[1])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_part(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(kind for kind in arguments if kind is not type(None)), where, limits)
    if origin is tuple and isinstance(value, list | tuple) and _is_length(len(value), arguments):
        return tuple(_checked(item, arguments[0], where, limits) for item in value)
    if origin is dict and isinstance(value, dict) and len(value) <= MOST_ENTRIES:
        return {key: _checked(item, arguments[1], f"{where}, '{shown(key)}'", limits) for key, item in value.items()}
    if hint in (int, float) and isinstance(value, hint | int) and not isinstance(value, bool):
        return _within(value, hint, where, limits or (WIDTH if hint is int else NUMBER))
    if hint is str and isinstance(value, str) and len(value) <= (limits.high if limits else LONGEST_TEXT):
        return value
    if origin is None and type(value) is hint and hint not in (str, float):
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(
        f"{where} is {quoted(value)}, where a {expected} is needed; take the file from the model's repository."
    )


def _is_length(count: int, arguments: tuple[Any, ...]) -> bool:
    """Of a list, by its annotation: tuple[int, int] has two, tuple[int, ...] any number."""
    return count <= MOST_ENTRIES if arguments[-1] is Ellipsis else count == len(arguments)


def _within(value: Any, kind: Any, where: str, limits: Range) -> Any:
    if limits.low <= value <= limits.high and math.isfinite(value):  # NaN is within no limits
        return kind(value)
    raise ConfigError(
        f"{where} is {quoted(value)}, where a number from {limits.low:g} to {limits.high:g} is needed; take the file "
        "from the model's repository."
    )
