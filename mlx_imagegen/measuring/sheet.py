"""Contact sheets and bar charts, drawn with Pillow alone.

In: pictures, labels and numbers. Out: a PIL image. Pillow's own font has Latin letters only; other scripts need a font
of the system, and where there is none the letters are left out and `unwritable` says so.
Must not know: models, files of runs.
"""

import functools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

PAPER, INK, PALE, REASON = (255, 255, 255), (24, 24, 27), (228, 228, 231), (153, 27, 27)
BARS = ((37, 99, 235), (217, 119, 6))
FONT_PIXELS, MARGIN = 15, 10
LINE = FONT_PIXELS + 5
LATIN = 0x24F  # the last letter of Latin Extended-B
# Fonts with Chinese and Japanese letters, where macOS and the usual Linux packages put them.
SYSTEM_FONTS = (
    "/System/Library/Fonts/ヒラギノ角ゴシック W3.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/Library/Fonts/Arial Unicode.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/opentype/ipafont-gothic/ipag.ttf",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
)


@dataclass(frozen=True)
class Tile:
    """A cell of a contact sheet: a picture with a caption, or the reason why there is none."""

    caption: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Bar:
    label: str
    value: float


def contact_sheet(
    columns: Sequence[str],
    rows: Sequence[tuple[str, str]],
    tiles: Sequence[Sequence[Tile]],
    side: int,
    footer: str = "",
) -> Image.Image:
    """`rows`: a short title and the text under it. `tiles`: row by row. `side`: of a picture here, in pixels."""
    heading = side  # the column of row labels
    heights = [max(_tile_height(tile, side) for tile in row) for row in tiles]
    width = heading + len(columns) * (side + MARGIN) + 2 * MARGIN
    heads = [_wrapped(name, side) for name in columns]
    top = MARGIN + LINE * max(map(len, heads)) + MARGIN
    foot = _wrapped(footer, width - 2 * MARGIN) if footer else []
    sheet = Image.new("RGB", (width, top + sum(heights) + MARGIN + LINE * len(foot)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + heading + MARGIN + column * (side + MARGIN) for column in range(len(columns))]
    for left, lines in zip(lefts, heads, strict=True):
        _write(draw, (left, MARGIN), lines, INK)
    for (title, text), row, height in zip(rows, tiles, heights, strict=True):
        _write(draw, (MARGIN, top), [title, *_wrapped(text, heading)][: height // LINE], INK)
        for left, tile in zip(lefts, row, strict=True):
            _paste(sheet, draw, (left, top), tile, side)
        top += height
    _write(draw, (MARGIN, top), foot, INK)
    return sheet


def bar_chart(panels: Mapping[str, Sequence[Bar]], footer: str = "") -> Image.Image:
    """One panel a measure, one below another; one bar a label, each with its number; every axis begins at 0."""
    count = max(len(bars) for bars in panels.values())
    panel = max(360, 120 * count)
    deepest = max(len(_label(bar, panel, len(bars))) for bars in panels.values() for bar in bars)
    height = 280 + LINE * deepest  # of a panel
    foot = _wrapped(footer, panel) if footer else []
    chart = Image.new("RGB", (panel + 2 * MARGIN, len(panels) * height + LINE * len(foot) + MARGIN), PAPER)
    draw = ImageDraw.Draw(chart)
    for index, (title, bars) in enumerate(panels.items()):
        top = index * height + MARGIN
        _write(draw, (MARGIN, top), [title], INK)
        box = MARGIN, top + 2 * LINE, MARGIN + panel, (index + 1) * height
        _bars(draw, bars, box, BARS[index % len(BARS)])
    _write(draw, (MARGIN, len(panels) * height), foot, INK)
    return chart


def unwritable(texts: Iterable[str]) -> list[str]:
    """The texts with letters that no font here has."""
    return [text for text in texts if not _is_latin(text) and _system_font() is None]


def _bars(draw: ImageDraw.ImageDraw, bars: Sequence[Bar], box: tuple[int, int, int, int], color: Color) -> None:
    left, top, right, bottom = box
    labels = [_label(bar, right - left, len(bars)) for bar in bars]
    floor = bottom - LINE * max(map(len, labels)) - MARGIN
    tallest = max(bar.value for bar in bars) or 1.0
    each = (right - left) / len(bars)
    for index, (bar, label) in enumerate(zip(bars, labels, strict=True)):
        x = left + index * each
        peak = floor - (floor - top - LINE) * bar.value / tallest
        draw.rectangle((x + each * 0.15, peak, x + each * 0.85, floor), fill=color)
        _write(draw, (x + each * 0.15, peak - LINE), [f"{bar.value:.3g}"], INK)
        _write(draw, (x + 4, floor + 4), label, INK)
    draw.line((left, floor, right, floor), fill=INK)


def _label(bar: Bar, panel: int, bars: int) -> list[str]:
    return _wrapped(bar.label, panel // bars - 8)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], tile: Tile, side: int) -> None:
    left, top = place
    if tile.picture is None:
        draw.rectangle((left, top, left + side, top + side), fill=PALE)
        _write(draw, (left + 6, top + 6), _wrapped(tile.caption, side - 12)[: side // LINE], REASON)
        return
    small = _shrunk(tile.picture, side)
    sheet.paste(small, (left, top))
    _write(draw, (left, top + small.height + 3), _wrapped(tile.caption, side), INK)


def _tile_height(tile: Tile, side: int) -> int:
    """With its caption and the gap below."""
    if tile.picture is None:
        return side + MARGIN
    return _shrunk_size(tile.picture, side)[1] + LINE * len(_wrapped(tile.caption, side)) + MARGIN


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    size = _shrunk_size(picture, side)
    smooth = Image.Resampling.LANCZOS if picture.width > side else Image.Resampling.NEAREST
    return picture.convert("RGB").resize(size, smooth)


def _shrunk_size(picture: Image.Image, side: int) -> tuple[int, int]:
    return side, max(1, round(picture.height * side / picture.width))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that fit into so many pixels; letters that cannot be written are left out."""
    shown = text if _is_latin(text) or _system_font() else _latin_part(text)
    letter = FONT_PIXELS if not _is_latin(shown) else FONT_PIXELS * 0.56
    return textwrap.wrap(shown, max(4, int(width / letter)), break_on_hyphens=False) or [""]


def _latin_part(text: str) -> str:
    runs = "".join(letter if ord(letter) <= LATIN else "\0" for letter in text)
    return " … ".join(part.strip() for part in runs.split("\0") if part.strip()) + " … (no font for the rest)"


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], lines: Sequence[str], color: Color) -> None:
    left, top = place
    for index, line in enumerate(lines):
        draw.text((left, top + index * LINE), line, fill=color, font=_font(_is_latin(line)))


def _is_latin(text: str) -> bool:
    return all(ord(letter) <= LATIN or letter in "…–—×“”‘’±" for letter in text)


@functools.cache
def _font(latin: bool) -> Font:
    path = None if latin else _system_font()
    return ImageFont.truetype(path, FONT_PIXELS) if path else ImageFont.load_default(FONT_PIXELS)


@functools.cache
def _system_font() -> str | None:
    return next((path for path in SYSTEM_FONTS if Path(path).is_file()), None)
