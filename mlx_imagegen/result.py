"""What a pipeline gives back: a finished picture with its record, and an event for each step on the way.

Must not know: models, how a picture is made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .image import encoded_picture, write_picture
from .paths import expanded
from .request.record_paths import without_places

if TYPE_CHECKING:
    from .report import Report


@dataclass(frozen=True)
class Result:
    image: Image.Image
    seed: int
    report: "Report"
    record: dict[str, Any]  # everything needed to make this picture again

    def save(self, path: str | Path, *, metadata: bool = True, report: bool = True, paths: bool = False) -> Path:
        """Writes the picture (PNG with its record inside, JPEG or WebP), all or nothing.

        `metadata=False`: the pixels alone. `report=False`: without seconds and machine, so that a seed gives the same
        bytes again. `paths`: record where local models and LoRAs are on this machine, not only their names.
        """
        path = expanded(path)
        write_picture(self.image, path, self._metadata(report, paths) if metadata else None)
        return path

    def encoded(self, path: str | Path, *, metadata: bool = True, report: bool = True, paths: bool = False) -> bytes:
        """The contents of the file that `save` would write."""
        return encoded_picture(self.image, Path(path), self._metadata(report, paths) if metadata else None)

    def json_line(self, path: Path) -> str:
        """Where it was written, its record and its report, on one line."""
        return json.dumps({"path": str(path), **self.record, "report": self.report.as_dict()}, ensure_ascii=False)

    def _metadata(self, report: bool = True, paths: bool = False) -> dict[str, Any]:
        record = self.record | ({"report": self.report.as_dict()} if report else {})
        return record if paths else without_places(record)

    def _repr_png_(self) -> bytes:
        """Shows the picture in a notebook, as the PNG that `save` writes."""
        return self.encoded("picture.png")


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
