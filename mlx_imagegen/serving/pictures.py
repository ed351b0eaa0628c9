"""Pictures on their way in and out: bytes that a client sent -> PIL images, and results -> bytes in a format.

In: file contents, base64, or data URLs. Never a path and never a URL: nothing is read or fetched for a client.
Must not know: HTTP, jobs, models.
"""

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import RequestError
from ..image import ALPHA, UNREADABLE, on_white, save_picture
from ..result import Result

FORMATS = ("PNG", "JPEG", "WEBP")  # that are read; others would let a client reach more of Pillow's decoders
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}  # that are written
PICTURE_PIXELS = 50_000_000  # of a picture that a client sends
QUALITY = {"jpeg": 95, "webp": 90}
PREVIEW_SIDE, PREVIEW_QUALITY = 512, 80
DESCRIPTION_LIMIT = 60


@dataclass(frozen=True)
class OutputFormat:
    """How results are written."""

    name: str = "png"
    quality: int | None = None

    @property
    def media_type(self) -> str:
        return TYPES[self.name]


def output_format(name: Any = None, compression: Any = None) -> OutputFormat:
    """`compression`: quality in percent, for jpeg and webp, as OpenAI's output_compression."""
    name = "png" if name is None else "jpeg" if name == "jpg" else name
    if not isinstance(name, str) or name not in TYPES:
        raise RequestError(f"output_format {shortened(name)}: give one of {', '.join(TYPES)}.")
    if compression is None or name == "png":
        return OutputFormat(name)
    compression = int(compression) if isinstance(compression, str) and compression.isdecimal() else compression
    if isinstance(compression, bool) or not isinstance(compression, int) or not 0 <= compression <= 100:
        raise RequestError(f"output_compression {shortened(compression)}: give a whole number from 0 to 100.")
    return OutputFormat(name, max(1, compression))


def read_picture(value: Any, name: str) -> Image.Image:
    """The picture in a file's bytes, in base64 or in a data URL; `name` is the parameter, for errors."""
    data = value if isinstance(value, bytes) else _decoded(value, name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height <= PICTURE_PIXELS:
                image.load()
                return ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise RequestError(f"{name} cannot be read as a picture; send a PNG, JPEG or WebP file.") from error
    raise RequestError(
        f"{name}: the picture has {image.width}x{image.height} pixels, and this server takes pictures of up to "
        f"{PICTURE_PIXELS / 1e6:.0f} million; make it smaller."
    )


def _decoded(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise RequestError(f"{name}: give a picture in base64, or a data URL.")
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(f"{name}: this data URL is not in base64; write data:image/png;base64,…")
    elif "://" in value[:16] or value.startswith(("/", "~", ".")):
        raise RequestError(f"{name}: URLs and paths are not read; send the picture itself, in base64.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name}: this is not base64; send the picture itself, in base64.") from None


def mask_from_alpha(mask: Image.Image) -> Image.Image:
    """OpenAI's mask, transparent where the picture is to change -> white there; one without alpha as it is."""
    if "A" not in mask.getbands() and "transparency" not in mask.info:
        return mask.convert("L")
    alpha = mask.convert("RGBA").getchannel("A")
    return ImageOps.invert(alpha) if np.asarray(alpha).min() < 255 else mask.convert("L")


def encode(result: Result, form: OutputFormat) -> bytes:
    """The file that `Result.save` would write, if it is a PNG: with its record inside."""
    return encode_image(result.image, form, result.record | {"report": result.report.as_dict()})


def preview(image: Image.Image) -> bytes:
    """A small JPEG to look at while the picture is being drawn."""
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return encode_image(small, OutputFormat("jpeg", PREVIEW_QUALITY))


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encode_image(image: Image.Image, form: OutputFormat, metadata: dict[str, Any] | None = None) -> bytes:
    """An unfinished picture has no metadata."""
    file = io.BytesIO()
    if form.name == "png":
        save_picture(image, file, "PNG", metadata)
    else:
        if form.name == "jpeg" and image.mode == ALPHA:  # which JPEG does not have
            image = on_white(image.convert("RGB"), image.getchannel("A"))
        image.save(file, form.name.upper(), quality=form.quality or QUALITY[form.name])
    return file.getvalue()


def shortened(value: Any) -> str:
    """A client's value for an error message: on one line, not long."""
    text = ascii(value)
    return text if len(text) <= DESCRIPTION_LIMIT else f"{text[:DESCRIPTION_LIMIT]}…"
