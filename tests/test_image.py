"""Pictures in and out: nothing half-written, nothing unread, the record as it was given."""

import os
import shutil
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import MissingFileError, OutputError, RequestError
from mlx_imagegen.image import (
    check_writable,
    fingerprint,
    open_picture,
    read_metadata,
    to_image,
    to_pixels,
    write_atomically,
    write_picture,
)

RECORD = {"prompt": "ein Füchslein, 狐, 🦊\nzweite Zeile", "seed": 7, "steps": [0.1, 0.2], "nested": {"a": None}}


def picture(width: int = 12, height: int = 8) -> Image.Image:
    return to_image(np.random.default_rng(0).random((height, width, 3)))


def test_levels_are_rounded_to_the_nearest_and_clipped() -> None:
    pixels = np.array([[[-1, 0, 0.4999 / 255], [0.5001 / 255, 254.6 / 255, 2]]])
    assert np.asarray(to_image(pixels)).tolist() == [[[0, 0, 0], [1, 255, 255]]]


def test_pixels_come_back() -> None:
    image = picture()
    assert np.array_equal(np.asarray(to_image(to_pixels(image))), np.asarray(image))
    assert to_pixels(image, (24, 16)).shape == (16, 24, 3)


def test_every_kind_of_picture_opens(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png"), array, array.astype(np.float32) / 255):
        assert np.array_equal(np.asarray(open_picture(given)), array)
    assert open_picture(image.convert("RGBA")).mode == "RGB"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (1, 4, 4, 3)])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="references: an array must have the shape"):
        open_picture(np.zeros(shape), "references")


def test_a_camera_s_note_of_how_it_was_held_is_followed(tmp_path: Path) -> None:
    upright = picture(12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn it a quarter to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    for given in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(open_picture(given)), np.asarray(upright))


def test_sixteen_bit_greys_keep_their_levels(tmp_path: Path) -> None:
    greys = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(greys * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(open_picture(tmp_path / "deep.png"))[..., 1], greys)


@pytest.mark.parametrize("given", [5, ["a.png"], np.full((4, 4, 3), 200), np.full((4, 4, 3), True)])
def test_what_is_no_picture_is_refused(given: object) -> None:
    with pytest.raises(RequestError, match="image.*(give a file's path|must be of uint8)") as caught:
        open_picture(given)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200, "not all that was given"


@pytest.mark.parametrize("values", [(0, 255.0), (-1.0, 1.0), (0, float("nan"))])
def test_floats_beyond_0_to_1_are_refused_rather_than_cut_off(values: tuple[float, float]) -> None:
    with pytest.raises(RequestError, match="floats must be from 0 to 1; it goes from"):
        open_picture(np.linspace(*values, 48).reshape(4, 4, 3))
    assert open_picture(np.full((4, 4, 3), 1.001)).getpixel((0, 0)) == (255, 255, 255)  # as resizing may leave it


@pytest.mark.parametrize("mode", ["I", "F"])
def test_greys_without_a_known_white_are_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (4, 4), 4000).save(tmp_path / "deep.tiff")
    for given in (Image.new(mode, (4, 4), 4000), tmp_path / "deep.tiff"):
        with pytest.raises(RequestError, match=f"is of Pillow's mode {mode}, .* make it RGB"):
            open_picture(given)


def test_pictures_without_pixels_are_refused() -> None:
    for given in (Image.new("RGB", (0, 4)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(RequestError, match=r"has no pixels: it is 0x4|this one has \(0, 4, 3\)"):
            open_picture(given)


def test_a_picture_that_breaks_off_is_named_though_it_was_opened_elsewhere(tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(RequestError, match="references: the picture cannot be read"):
        open_picture(Image.open(tmp_path / "a.png"), "references")


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"image: .*nowhere.png is not there"):
        open_picture(tmp_path / "nowhere.png")
    for data in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(RequestError, match="cannot be read as a picture"):
            open_picture(tmp_path / "a.png")
    picture(64, 64).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:2000])
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        open_picture(tmp_path / "b.png")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        open_picture(tmp_path)


def test_the_record_comes_back(tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / "a.png", RECORD)
    assert read_metadata(tmp_path / "a.png") == RECORD
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture()))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_other_formats_are_written_without_a_record(name: str, tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / name, RECORD)
    assert Image.open(tmp_path / name).size == (12, 8)
    with pytest.raises(RequestError, match="no record"):
        read_metadata(tmp_path / name)


def test_pictures_without_a_record_of_ours(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="no record"):
        read_metadata(tmp_path / "a.png")
    with pytest.raises(MissingFileError):
        read_metadata(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match="cannot be read"):
        read_metadata(tmp_path / "b.png")


def test_records_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(picture(), tmp_path / "a.png", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="is damaged: it is no JSON object"):
        read_metadata(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # as a damaged header that speaks of billions of pixels
    with pytest.raises(RequestError, match="cannot be read"):
        read_metadata(tmp_path / "a.png")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    for name in ("a", "a.gif", "a.png.txt"):
        with pytest.raises(RequestError, match="must end in"):
            write_picture(picture(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_write_that_breaks_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_atomically(path, write)
    if isinstance(error, OSError):
        assert "a.png could not be written: No space left on device" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"before"


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Threads of one service that keep a latest.png: the later one's is there, whole."""
    path = tmp_path / "a.png"

    def write(file: IO[bytes]) -> None:
        file.write(b"first, ")
        write_atomically(path, lambda other: other.write(b"second"))
        file.write(b"to the end")

    write_atomically(path, write)
    assert path.read_bytes() == b"first, to the end"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_picture(picture(), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="does not exist"):
        check_writable(tmp_path / "no" / "a.png")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="is not writable .*choose another place or name"):
        check_writable(tmp_path / "a\0.png")


@pytest.mark.parametrize("length", [248, 300])
def test_a_name_that_is_too_long_is_refused_before_the_work(length: int, tmp_path: Path) -> None:
    """248: the file itself could be, but not the one that is written first."""
    for path in (tmp_path / ("a" * length + ".png"), tmp_path / ("a" * length) / "a.png"):
        with pytest.raises(OutputError, match="File name too long|does not exist"):
            check_writable(path)


def test_a_disk_without_room_for_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2_999_999))
    check_writable(tmp_path / "a.png", 999_999)
    with pytest.raises(OutputError, match=r"is full: 3.00 MB are free, and a picture may take 3.15 MB"):
        check_writable(tmp_path / "a.png", 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=0, free=0))
    check_writable(tmp_path / "a.png", 1024 * 1024)  # a network drive that does not say


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a folder in which even root cannot write")
def test_root_is_told_too_when_a_folder_takes_no_file() -> None:
    with pytest.raises(OutputError, match="is not writable"):
        check_writable(Path("/proc/self/a.png"))


def test_fingerprints_tell_pictures_apart() -> None:
    image = picture()
    assert fingerprint(image) == fingerprint(image.copy()) == fingerprint(np.asarray(image))
    assert fingerprint(image) != fingerprint(image.rotate(180))
    assert fingerprint(np.zeros((2, 3))) != fingerprint(np.zeros((3, 2)))


def test_what_is_transparent_counts_as_white_and_is_said(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 127))
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    picture.save(tmp_path / "a.png")
    palette.save(tmp_path / "b.png", transparency=0)
    for given in (picture, tmp_path / "a.png", tmp_path / "b.png"):
        notes: list[str] = []
        opened = open_picture(given, "references", notes=notes)
        assert (opened.mode, opened.getpixel((0, 0)), opened.getpixel((3, 1))) == ("RGB", (255,) * 3, (255, 0, 0))
        assert notes == ["references: what is transparent counts as white"]
    assert open_picture(picture).getpixel((1, 0)) == (128, 128, 128)
    notes = []
    assert open_picture(picture.convert("RGB").convert("RGBA"), notes=notes).mode == "RGB" and notes == []


def test_an_animation_s_first_frame_is_used_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    notes: list[str] = []
    assert open_picture(tmp_path / "a.gif", notes=notes).getpixel((0, 0)) == (255, 0, 0)
    assert notes == ["image: of 3 frames, the first is used"]
