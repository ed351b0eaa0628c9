"""Sheets and charts: what is where, and what is said when letters or pictures are missing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from mlx_imagegen.measuring import sheet
from mlx_imagegen.measuring.sheet import (
    BARS,
    FONT_PIXELS,
    MARGIN,
    PALE,
    REASON,
    Bar,
    Tile,
    bar_chart,
    contact_sheet,
    unwritable,
)

SIDE = 96
RED, BLUE = (250, 10, 10), (10, 10, 250)
MISSING = Tile("the model does not fit")


@pytest.fixture
def no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "SYSTEM_FONTS", ())
    sheet._system_font.cache_clear()
    sheet._font.cache_clear()
    yield
    sheet._system_font.cache_clear()
    sheet._font.cache_clear()


def square(color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, color)


def columns_of(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom of all pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_pictures_stand_in_their_row_and_column() -> None:
    tiles = [[Tile("1.0 s", square(RED)), MISSING], [MISSING, Tile("2.0 s", square(BLUE))]]
    image = contact_sheet(["a", "b"], [("photo", "a boat"), ("art", "a fox")], tiles, SIDE)
    red, blue = columns_of(image, RED), columns_of(image, BLUE)
    assert red[2] - red[0] == red[3] - red[1] == SIDE
    assert red[0] == MARGIN + SIDE + MARGIN, "next to the labels"
    assert blue[0] - red[0] == SIDE + MARGIN, "one column to the right"
    assert blue[1] > red[3], "one row below"


def test_a_wide_picture_keeps_its_shape() -> None:
    tiles = [[Tile("1 s", square(RED, (200, 100)))]]
    left, top, right, bottom = columns_of(contact_sheet(["a"], [("x", "y")], tiles, SIDE), RED)
    assert (right - left, bottom - top) == (SIDE, SIDE // 2)


def test_a_missing_picture_says_why() -> None:
    image = contact_sheet(["a"], [("x", "y")], [[MISSING]], SIDE)
    pale = np.asarray(image) == PALE
    assert pale.all(-1).sum() > SIDE * SIDE / 2, "the cell is there, with letters on it"
    assert (np.asarray(image) == REASON).all(-1).any()


def test_everything_written_changes_the_sheet() -> None:
    tiles = [[Tile("1 s", square(RED))]]
    plain = np.asarray(contact_sheet(["a"], [("x", "y")], tiles, SIDE, "seed 1"))
    for other in (
        contact_sheet(["b"], [("x", "y")], tiles, SIDE, "seed 1"),
        contact_sheet(["a"], [("z", "y")], tiles, SIDE, "seed 1"),
        contact_sheet(["a"], [("x", "w")], tiles, SIDE, "seed 1"),
        contact_sheet(["a"], [("x", "y")], [[Tile("2 s", square(RED))]], SIDE, "seed 1"),
        contact_sheet(["a"], [("x", "y")], tiles, SIDE, "seed 2"),
    ):
        assert other.size == plain.shape[1::-1] and not np.array_equal(np.asarray(other), plain)


def test_bars_are_as_long_as_their_numbers() -> None:
    image = np.asarray(bar_chart({"seconds": [Bar("q8", 4.0), Bar("q4", 1.0)]}))
    colored = (image == BARS[0]).all(-1)
    heights = colored.sum(0)
    first, second = heights[: image.shape[1] // 2].max(), heights[image.shape[1] // 2 :].max()
    assert first / second == pytest.approx(4, rel=0.05)


def test_a_long_label_takes_no_height_from_the_bars() -> None:
    """Models may be called by paths as deep as the Hugging Face cache's."""
    images = [np.asarray(bar_chart({"seconds": [Bar("q8", 4.0), Bar(label, 1.0)]})) for label in ("q4", "/deep" * 60)]
    short, long = ((image == BARS[0]).all(-1).sum(0).max() for image in images)
    assert short == long > 100


def test_letters_without_a_font_are_said_and_left_out(no_font: None) -> None:
    kanji = 'a scroll with "山川草木" on it'
    assert unwritable(["plain", "naïve café …", kanji]) == [kanji]
    assert " ".join(sheet._wrapped(kanji, 900)) == 'a scroll with " … " on it … (no font for the rest)'
    contact_sheet(["a"], [("kanji", kanji)], [[MISSING]], SIDE)


def test_a_system_font_is_used_where_there_is_one(
    no_font: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any font file will do for finding one: Pillow's own, saved."""
    default = ImageFont.load_default(FONT_PIXELS)
    assert isinstance(default, ImageFont.FreeTypeFont)
    font = tmp_path / "font.ttf"
    font.write_bytes(default.font_bytes)
    monkeypatch.setattr(sheet, "SYSTEM_FONTS", (str(tmp_path / "absent.ttc"), str(font)))
    sheet._system_font.cache_clear()
    assert unwritable(["山川草木"]) == []
    assert sheet._wrapped("山川草木", 900) == ["山川草木"]
