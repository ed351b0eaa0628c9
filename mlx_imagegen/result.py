"""What a pipeline gives back: a finished picture with its record, and an event for each step on the way.

Must not know: models, how a picture is made.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .image import save_picture, write_picture
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

    def save(self, path: str | Path, *, metadata: bool = True, report: bool = True, paths: bool = False) -> Path:
        """Writes the picture (PNG with its record inside, JPEG or WebP), all or nothing; its layers before it, each to
        a file next to it (`layer_path`).

        `metadata=False`: the pixels alone. `report=False`: without seconds and machine, so that a seed gives the same
        bytes again. `paths`: record where local models and LoRAs are on this machine, not only their names.
        """
        path, made = expanded(path), self._metadata(report, paths) if metadata else None
        for number, layer in enumerate(self.layers, start=1):
            write_picture(layer, layer_path(path, number), made)
        write_picture(self.image, path, made)
        return path

    def _metadata(self, report: bool = True, paths: bool = False) -> dict[str, Any]:
        record = self.record | ({"report": self.report.as_dict()} if report else {})
        return record if paths else without_places(record)

    def _repr_png_(self) -> bytes:
        """Shows the picture in a notebook, as the PNG that `save` writes."""
        file = io.BytesIO()
        save_picture(self.image, file, "PNG", self._metadata())
        return file.getvalue()


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
