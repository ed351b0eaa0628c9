"""Pictures that clients send, and what they get."""

import io

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.serving.pictures import (
    PICTURE_PIXELS,
    OutputFormat,
    as_base64,
    encode_image,
    mask_from_alpha,
    output_format,
    preview,
    read_picture,
)

from .conftest import in_base64, png, same


def test_bytes_base64_and_data_urls_are_the_same_picture() -> None:
    data = png("orange")
    pictures = [
        read_picture(each, "image") for each in (data, in_base64(data), f"data:image/png;base64,{as_base64(data)}")
    ]
    assert all(same(each, pictures[0]) for each in pictures) and pictures[0].size == (48, 32)


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "~/x.png", "./x.png", "file:///etc/passwd", "http://127.0.0.1/x.png", "data:,x", "äöü", 7, []],
)
def test_paths_and_urls_are_not_read(value: object) -> None:
    with pytest.raises(RequestError, match="image"):
        read_picture(value, "image")


def test_other_formats_than_three_are_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "BMP")
    with pytest.raises(RequestError, match="PNG, JPEG or WebP"):
        read_picture(file.getvalue(), "image")


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    side = int(PICTURE_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(RequestError, match="make it smaller"):
        read_picture(file.getvalue(), "image")


def test_transparent_parts_of_a_mask_are_what_changes() -> None:
    mask = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    mask.putpixel((1, 0), (9, 9, 9, 0))
    assert np.asarray(mask_from_alpha(mask)).tolist() == [[0, 255]]
    opaque = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    opaque.putpixel((0, 0), (255, 255, 255, 255))
    assert np.asarray(mask_from_alpha(opaque)).tolist() == [[255, 0]]
    assert np.asarray(mask_from_alpha(Image.new("L", (1, 1), 77))).tolist() == [[77]]


def test_output_formats() -> None:
    assert output_format() == OutputFormat("png") and output_format("jpg", "40") == OutputFormat("jpeg", 40)
    for name, compression in (("bmp", None), (3, None), ("jpeg", 101), ("webp", "x"), ("webp", True)):
        with pytest.raises(RequestError, match="output_"):
            output_format(name, compression)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    sizes = [len(encode_image(noise, output_format("jpeg", quality))) for quality in (10, 90)]
    assert sizes[0] < sizes[1] / 2
    assert Image.open(io.BytesIO(encode_image(noise, OutputFormat("webp")))).format == "WEBP"


def test_previews_are_small() -> None:
    shown = Image.open(io.BytesIO(preview(Image.new("RGB", (2048, 1024)))))
    assert shown.size == (512, 256) and shown.format == "JPEG"


def test_a_jpeg_shows_what_is_transparent_as_white() -> None:
    clear = Image.new("RGBA", (48, 32), (0, 0, 255, 0))
    for data in (preview(clear), encode_image(clear, OutputFormat("jpeg"))):
        with Image.open(io.BytesIO(data)) as shown:
            assert shown.format == "JPEG" and np.asarray(shown).min() > 250
