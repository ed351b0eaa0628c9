"""What a pipeline gives back: a finished picture with its record, and an event for each step on the way.

Must not know: models, how a picture is made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .errors import file_errors
from .image import encoded_picture, write_picture
from .paths import expanded
from .request.record_paths import without_places

if TYPE_CHECKING:
    from .report import Report


def layer_path(path: Path, number: int) -> Path:
    """Where a picture's layer is written; `number`: from 1, the lowest."""
    return path.with_name(f"{path.stem}.layer{number}{path.suffix}")


@dataclass(frozen=True)
class Result:
    image: Image.Image
    seed: int
    report: "Report"
    record: dict[str, Any]  # everything needed to make this picture again
    layers: tuple[Image.Image, ...] = ()  # that the image consists of, the lowest first; () where it is one

    def __repr__(self) -> str:
        """Short, for a session in Python: reports and records fill a page."""
        width, height = self.image.size
        return f"Result({width}x{height}, seed {self.seed}, {self.report.total_seconds:.3g} s)"

    @file_errors()
    def save(self, path: str | Path, *, metadata: bool = True, report: bool = True, paths: bool = False) -> Path:
        """Writes the picture (PNG with its record inside, JPEG or WebP), all or nothing; its layers before it, each to
        a file next to it (`layer_path`).

        `metadata=False`: the pixels alone. `report=False`: without seconds and machine, so that a seed gives the same
        bytes again. `paths`: record where local models and LoRAs are on this machine, not only their names.
        """
        path, made = expanded(path), self._metadata(report, paths) if metadata else None
        for place, picture in self._pictures(path):
            write_picture(picture, place, made)
        return path

    def encoded(
        self, path: str | Path, *, metadata: bool = True, report: bool = True, paths: bool = False
    ) -> dict[Path, bytes]:
        """The contents of the files that `save` would write, in their order."""
        made = self._metadata(report, paths) if metadata else None
        return {place: encoded_picture(picture, place, made) for place, picture in self._pictures(Path(path))}

    def line(self, path: Path, as_json: bool = False) -> str:
        """What is printed of a picture: where it and its layers were written; as JSON its record and report as well."""
        layers = [str(place) for place, _ in self._pictures(path)[:-1]]
        if not as_json:
            return "\n".join([str(path), *layers])
        places = {"path": str(path)} | ({"layer_paths": layers} if layers else {})
        return json.dumps(places | self.record | {"report": self.report.as_dict()}, ensure_ascii=False)

    def _pictures(self, path: Path) -> list[tuple[Path, Image.Image]]:
        layers = [(layer_path(path, number), layer) for number, layer in enumerate(self.layers, start=1)]
        return [*layers, (path, self.image)]

    def _metadata(self, report: bool, paths: bool) -> dict[str, Any]:
        record = self.record | ({"report": self.report.as_dict()} if report else {})
        return record if paths else without_places(record)

    def _repr_png_(self) -> bytes:
        """Shows the picture in a notebook, as the PNG that `save` writes."""
        path = Path("picture.png")
        return self.encoded(path)[path]


@dataclass(frozen=True)
class StepEvent:
    """Given to `on_step` after every step."""

    picture: int  # which of the request's pictures, from 0
    pictures: int
    step: int  # from 1
    steps: int
    seconds: float
    preview: Callable[[], Image.Image]  # the model's present idea of the picture; `preview` says how it is made


OnStep = Callable[[StepEvent], None]
