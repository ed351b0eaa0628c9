"""config.json -> frozen dataclass.

A component's config is a frozen dataclass whose fields are the keys of its config.json. Keys that the port has no use
for stand in the class's `IGNORED`; any other key is an error, because a key nobody reads may change the picture.
Knows nothing about tensors.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self

from ..errors import ConfigError, MissingFileError

# Bookkeeping that transformers and diffusers write into every config.json.
BOOKKEEPING = frozenset(
    "_class_name _diffusers_version _name_or_path _commit_hash architectures model_type torch_dtype dtype "
    "transformers_version quantization quantization_config mlx_imagegen".split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        """Takes the fields out of `data`; `where` names the file in errors."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        missing = []
        for name, field in fields.items():
            if name in data:
                values[name] = _checked(data[name], hints[name], f"{where}: field '{name}'")
            elif field.default is dataclasses.MISSING:
                missing.append(name)
        unread = sorted(set(data) - set(fields) - cls.IGNORED - BOOKKEEPING)
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
        return cls(**values)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with errors that name the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path} is not there; download the model again, or point to a complete folder."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); see to its permissions and its disk.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not a JSON object; download it again.")
    return data


def _fields(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"field {quoted} is" if len(names) == 1 else f"fields {quoted} are"


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type: lists become tuples, whole numbers may stand for floats; nothing else changes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(kind for kind in arguments if kind is not type(None)), where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(item, arguments[0], where) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if (origin is None and type(value) is hint) or (origin is dict and isinstance(value, dict)):
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} is {value!r}, where a {expected} is needed; take the file from the model's repository.")
