"""Pictures in and out: arrays <-> PIL, files, and what a PNG says about how it was made.

Must not know: models, prompts' meaning.
"""

import functools
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from .atomic import atomic_replace
from .documents import no_file, parse_json
from .errors import MissingFileError, OutputError, RequestError
from .escaping import shown
from .paths import expanded

METADATA_KEY = "mlx_imagegen"  # the iTXt chunk that holds the JSON of a picture's making
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ROUNDING = 0.002  # half a level: floats that were computed may be that far outside 0..1
ALPHA = "RGBA"  # Pillow's mode of pictures with an alpha
CHANNELS = 3  # a byte each; files are smaller, as far as a picture can be packed
MB = 1e6
CANVAS_SIDES = 64, 4096  # pixels, at least and at most
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

Picture = str | Path | Image.Image | np.ndarray
Box = tuple[float, float, float, float]  # x1, x2, y1, y2, as shares of a picture's sides


def to_image(pixels: np.ndarray) -> Image.Image:
    """[H, W, 3], or 4 with alpha, in 0..1 -> PIL, rounded to the nearest of 256 levels."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def to_layers(pixels: np.ndarray) -> list[Image.Image]:
    """The same of a picture that comes in layers, [N, H, W, 4], the lowest first; of any other, the one picture."""
    return [to_image(layer) for layer in (pixels if pixels.ndim == 4 else [pixels])]


def laid_over(layers: Sequence[Image.Image]) -> Image.Image:
    """Each layer over those before it."""
    return functools.reduce(Image.alpha_composite, layers)


def to_pixels(image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """PIL -> [H, W, 3] in 0..1, 4 where it has an alpha, resized with Lanczos as diffusers does."""
    image = image if image.mode == ALPHA else image.convert("RGB")
    image = resized(image, size) if size else image
    return np.asarray(image, np.float32) / 255


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def proportioned(size: tuple[int, int], area: int, multiple: int) -> tuple[int, int]:
    """Width and height of about `area` pixels in the proportions of `size`, in whole multiples; as diffusers does."""
    ratio = size[0] / size[1]
    width = math.sqrt(area * ratio)
    return max(multiple, round(width / multiple) * multiple), max(multiple, round(width / ratio / multiple) * multiple)


def nearest_shape(size: tuple[int, int], sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """Of `sizes` the one nearest in proportions to `size`, cut to whole multiples first; as diffusers does."""
    across, down = (max(side, multiple) for side in cut_size(size, multiple))
    ratio = across / down
    _, width, height = min((abs(ratio - width / height), width, height) for width, height in sizes)
    return width, height


def within_area(size: tuple[int, int], area: int) -> tuple[int, int]:
    """The size itself, or one of at most `area` pixels in its proportions; as diffusers does for FLUX.2."""
    return size if size[0] * size[1] <= area else of_area(size, area)


def of_area(size: tuple[int, int], area: int) -> tuple[int, int]:
    """A size of at most `area` pixels in the proportions of `size`, smaller or larger."""
    scale = math.sqrt(area / (size[0] * size[1]))
    return int(size[0] * scale), int(size[1] * scale)


def cut_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The largest size of whole multiples in it."""
    return size[0] // multiple * multiple, size[1] // multiple * multiple


def cropped(picture: Image.Image, area: int, multiple: int) -> Image.Image:
    """A picture brought down to at most `area` pixels, its edges cut off up to whole multiples."""
    picture = picture.resize(within_area(picture.size, area), Image.Resampling.LANCZOS)
    width, height = cut_size(picture.size, multiple)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def canvas(size: tuple[int, int], area: int, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that a picture is brought down to, and that of the whole multiples around it, of at most `area` pixels
    and sides of CANVAS_SIDES; as FLUX.3's code has it."""
    least, most = CANVAS_SIDES
    scale = min(1.0, math.sqrt(area / (size[0] * size[1])), most / max(size))
    while True:
        inner = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        width, height = (min(most, max(least, -(-side // multiple) * multiple)) for side in inner)
        if width * height <= area:
            return inner, (width, height)
        scale *= 0.995


def fitted(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """The size, in multiples, that is nearest to a picture's shape and has at most side x side pixels; a picture much
    larger than that is halved first, as its pixels will be."""
    while min(size) >= 2 * side:
        size = size[0] // 2, size[1] // 2
    scale = math.sqrt(side * side / (size[0] * size[1]))

    def cut(rounding: Any, length: int) -> int:
        return int(rounding(length * scale)) // multiple * multiple

    candidates = [
        (cut(first, size[0]), cut(second, size[1])) for first in (round, math.floor) for second in (round, math.floor)
    ]
    candidates.sort(key=lambda candidate: candidate[0] * candidate[1], reverse=True)
    width, height = next((found for found in candidates if found[0] * found[1] <= side * side), candidates[-1])
    return max(width, multiple), max(height, multiple)


def open_picture(
    picture: Picture, name: str = "image", alpha: bool = False, notes: list[str] | None = None
) -> Image.Image:
    """A path, a PIL image or an array [H, W, 3] (uint8, or 0..1) as RGB, on white; `name` is the parameter, for errors.
    `alpha`: as RGBA where it has an alpha, or an array four channels. `notes` gets what is not used of the picture."""
    opened = _opened(picture, name, alpha, notes)
    if alpha and opened.has_transparency_data:
        return opened.convert(ALPHA)
    opened, opaque = _split(opened)
    if opaque is None:
        return opened
    if notes is not None:
        notes.append(f"{name}: what is transparent counts as white")
    return on_white(opened, opaque)


def open_with_alpha(
    picture: Picture, name: str = "image", notes: list[str] | None = None
) -> tuple[Image.Image, Image.Image | None]:
    """The same, and how opaque each pixel is: None where all are wholly so. An array may have four channels."""
    return _split(_opened(picture, name, True, notes))


def on_white(picture: Image.Image, opaque: Image.Image) -> Image.Image:
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), opaque)


def _split(opened: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if not opened.has_transparency_data:
        return opened.convert("RGB"), None
    opened = opened.convert("RGBA")
    opaque = opened.getchannel("A")
    return opened.convert("RGB"), None if opaque.getextrema() == (255, 255) else opaque


def _regular(path: Path) -> Path:
    if what := no_file(path.stat()):
        raise ValueError(what)
    return path


def _opened(picture: Picture, name: str, alpha: bool = False, notes: list[str] | None = None) -> Image.Image:
    """Upright, in 8 bits a channel."""
    if isinstance(picture, np.ndarray):
        return _of_array(picture, name, (3, 4) if alpha else (3,))
    if not isinstance(picture, str | Path | Image.Image):
        kind = type(picture).__name__
        raise RequestError(f"{name} is of the kind {kind}: give a file's path, a PIL image or an array of pixels.")
    shown = f"{name}: " + ("the picture" if isinstance(picture, Image.Image) else str(expanded(picture)))
    try:
        if isinstance(picture, Image.Image):
            upright = ImageOps.exif_transpose(picture)  # opened, perhaps, but not read yet
        else:
            with Image.open(_regular(expanded(picture))) as image:
                if notes is not None and (frames := getattr(image, "n_frames", 1)) > 1:
                    notes.append(f"{name}: of {frames} frames, the first is used")
                upright = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise MissingFileError(f"{shown} is not there.") from error
    except UNREADABLE as error:
        raise RequestError(f"{shown} cannot be read as a picture ({error}). Use a PNG, JPEG or WebP file.") from error
    return _in_eight_bits(upright, shown)


def _of_array(array: np.ndarray, name: str, channels: tuple[int, ...]) -> Image.Image:
    if array.ndim != 3 or array.shape[2] not in channels or not array.size:
        raise RequestError(
            f"{name}: an array must have the shape [height, width, {' or '.join(map(str, channels))}], this one has "
            f"{array.shape}."
        )
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise RequestError(f"{name}: an array must be of uint8, or of floats from 0 to 1; it is {array.dtype}.")
    low, high = array.min(), array.max()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is outside as well
        raise RequestError(f"{name}: an array of floats must be from 0 to 1; it goes from {low:g} to {high:g}.")
    return to_image(array)


def _in_eight_bits(image: Image.Image, shown: str) -> Image.Image:
    """Pillow cuts deep greys off at 255, which would leave nothing but white."""
    if image.mode.startswith("I;16"):
        levels: np.ndarray = np.asarray(image, np.float64) / 257
        image = Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise RequestError(f"{shown} is of Pillow's mode {image.mode}, which does not say what is white; make it RGB.")
    if 0 in image.size:
        raise RequestError(f"{shown} has no pixels: it is {image.size[0]}x{image.size[1]}.")
    return image


def fingerprint(picture: Image.Image | np.ndarray) -> str:
    """Tells one picture's (or array's) values from another's, for records."""
    array = np.ascontiguousarray(picture)
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()[:16]


def write_picture(image: Image.Image, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Saves a picture with its making inside (PNG only), all or nothing."""
    form = picture_format(path, image.mode == ALPHA)
    write_atomically(path, lambda file: save_picture(image, file, form, metadata))


def encoded_picture(image: Image.Image, path: Path, metadata: dict[str, Any] | None = None) -> bytes:
    """The file that `write_picture` would write to this path."""
    file = io.BytesIO()
    save_picture(image, file, picture_format(path, image.mode == ALPHA), metadata)
    return file.getvalue()


def save_picture(image: Image.Image, file: IO[bytes], form: str, metadata: dict[str, Any] | None = None) -> None:
    options: dict[str, Any] = {}
    if form == "PNG" and metadata is not None:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
        options["pnginfo"] = info
    elif form == "JPEG":
        options["quality"] = 95
    image.save(file, form, **options)


def picture_format(path: Path, alpha: bool = False) -> str:
    """By the name's ending. `alpha`: whether the picture has one."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"'{path}': a picture's name must end in {', '.join(FORMATS)}.")
    form = FORMATS[path.suffix.lower()]
    if alpha and form == "JPEG":
        raise RequestError(f"'{path}': JPEG has no alpha; name a transparent picture .png or .webp.")
    return form


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_picture` put into a PNG."""
    try:
        with Image.open(_regular(path)) as image:
            image.load()
            text = getattr(image, "text", {}).get(METADATA_KEY)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is not there.") from error
    except UNREADABLE as error:
        raise RequestError(
            f"{path} cannot be read as a picture ({error}). Give a PNG that mlx-imagegen made."
        ) from error
    if text is None:
        raise RequestError(f"{path} holds no record of how it was made; only PNG files written by mlx-imagegen do.")
    record = parse_json(text, f"{path}: the record of how it was made", RequestError, "take another picture")
    if not isinstance(record, dict):
        raise RequestError(f"{path}: the record of how it was made is damaged: it is no JSON object.")
    return record


def write_bytes(path: Path, contents: bytes) -> None:
    write_atomically(path, lambda file: file.write(contents))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes next to `path` and renames at the end, so that no half-written file ever has its name."""
    check_writable(path)
    try:
        with atomic_replace(path) as temporary, temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}. Free some room or choose another place."
        ) from error


def check_writable(path: Path, pixels: int = 0) -> None:
    """Refuses an output that cannot be written, before the work is done for it; `pixels`: of the largest picture."""
    folder = path.parent
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file in it.")
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, and no folder for {path.name}; choose another place.")
        if not folder.is_dir():
            raise OutputError(f"the folder {folder} does not exist; create it or choose another place.")
        # The system's own word on permissions is no good for root, on network drives and on read-only disks. The name
        # is as long as that of the file which is written first.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{shown(str(path), 200)} is not writable ({reason}); choose another place or name."
        ) from error
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < pixels * CHANNELS:  # some network drives do not say, and give 0 of 0
        raise OutputError(
            f"the disk of {folder} is full: {disk.free / MB:.2f} MB are free, and a picture may take "
            f"{pixels * CHANNELS / MB:.2f} MB. Free some room or choose another place."
        )
