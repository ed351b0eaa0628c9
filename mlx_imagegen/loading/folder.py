"""A model's folder: the small files by which a family recognizes it and opens it.

Must not know: which families there are, what tensors are called.
"""

import functools
from pathlib import Path
from typing import Any

from ..documents import read_json
from ..escaping import shown
from ..paths import visible

RECOGNIZED_BY = ("model_index.json", "config.json", "transformer/config.json")  # the files that say what a folder is


class ModelFolder:
    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def _read(self) -> dict[str, dict[str, Any]]:
        return {name: read_json(self.path / name) for name in RECOGNIZED_BY if (self.path / name).is_file()}

    def config(self, name: str) -> dict[str, Any]:
        """One of RECOGNIZED_BY; empty where it is not there."""
        return self._read.get(name, {})

    @property
    def pipeline(self) -> str | None:
        """diffusers' pipeline class."""
        return self._class_name("model_index.json")

    @property
    def architecture(self) -> str | None:
        """transformers' model class."""
        named = self.config("config.json").get("architectures")
        first = named[0] if isinstance(named, list) and named else named
        return None if first is None else str(first)

    @property
    def transformer(self) -> str | None:
        """diffusers' transformer class."""
        return self._class_name("transformer/config.json")

    def _class_name(self, file: str) -> str | None:
        named = self.config(file).get("_class_name")
        return None if named is None else str(named)

    def files(self, pattern: str) -> list[Path]:
        return visible(self.path, pattern)

    def described(self) -> list[str]:
        """What each file says, for refusals."""
        own = self.architecture or self._class_name("config.json")  # of a part alone, which diffusers saved
        named = zip(RECOGNIZED_BY, (self.pipeline, own, self.transformer), strict=True)
        present = [(file, value) for file, value in named if file in self._read]
        return [f"{file} says {shown(value, 40)}" for file, value in present if value is not None or len(present) == 1]
