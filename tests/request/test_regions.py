"""What is drawn of a picture: masks of every kind, boxes, transparency, margins; what is refused, with a way out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.masks import Crop
from mlx_imagegen.request.job import Job, resolve
from mlx_imagegen.request.parameters import PICTURE_FIELDS
from mlx_imagegen.request.regions import open_mask

DEV, EDIT = manifests()["flux-dev"], manifests()["qwen-image-edit"]
PICTURE = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
WHITE, BLACK = (Image.new("L", (64, 48), level) for level in (255, 0))


def one(manifest: Any = DEV, **parameters: Any) -> Job:
    (job,) = resolve(manifest, 16, "a fox", 1, **({"image": PICTURE} | parameters))
    return job


def mask_of(**parameters: Any) -> np.ndarray:
    """In the picture's size."""
    region = one(**parameters).region
    assert region is not None
    picture, mask = replace(region, crop=None).drawn_at(region.picture.size)
    assert picture.size == mask.size
    return np.asarray(mask)


def test_every_kind_of_mask_opens(tmp_path: Path) -> None:
    drawn = np.zeros((48, 64), bool)
    drawn[10:20, 30:50] = True
    levels = drawn.astype(np.uint8) * 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    strokes = np.dstack([np.full((48, 64, 3), 255, np.uint8), levels])  # white, painted on nothing
    kinds: list[Any] = [drawn, levels, drawn.astype(np.float32), Image.fromarray(drawn), Image.fromarray(levels)]
    for kind in [*kinds, np.repeat(levels[..., None], 3, 2), Image.fromarray(strokes), tmp_path / "mask.png"]:
        assert np.array_equal(mask_of(mask=kind), levels)


def test_a_mask_of_another_size_is_brought_to_the_picture_s() -> None:
    large = Image.new("L", (128, 96))
    large.paste(255, (64, 0, 128, 96))
    mask = mask_of(mask=large)
    assert mask.shape == (48, 64) and (mask[:, :29] == 0).all() and (mask[:, 35:] == 255).all()
    assert mask_of(mask=Image.new("L", (63, 48), 255)).shape == (48, 64), "sizes are rounded"


def test_a_mask_is_resampled_once_and_in_its_colours() -> None:
    """As diffusers does. A mask on its way through the picture's size, or in greys, has other levels here and there,
    and at the middle level another pixel is drawn."""
    dice = np.random.default_rng(0)
    levels = np.asarray(Image.fromarray(dice.integers(0, 256, (9, 12), np.uint8)).resize((96, 72)))
    mask = Image.fromarray(np.dstack([levels, levels // 2, 255 - levels]))
    region = one(mask=mask, width=48, height=32).region
    assert region is not None
    expected = mask.resize((48, 32), Image.Resampling.LANCZOS).convert("L")
    assert np.array_equal(region.drawn_at((48, 32))[1], expected)
    other = mask.convert("L").resize((48, 32), Image.Resampling.LANCZOS)
    assert not np.array_equal(other, expected), "the levels tell the two apart"


def test_a_box_is_in_the_picture_s_pixels() -> None:
    for box in ("10,20,30,40", [10, 20, 30, 40], (10.0, 20, 30, 40)):
        mask = mask_of(mask_box=box)
        assert mask[20:40, 10:30].all() and mask.sum() == 255 * 400
    assert one(mask_box="10,20,30,40").record("embedded")["mask_box"] == [10, 20, 30, 40]


def test_margins() -> None:
    job = one(expand="left=16,bottom=32")
    assert (job.settings.width, job.settings.height, job.strength) == (80, 80, 1.0)
    assert mask_of(expand={"left": 16, "bottom": 32}).sum() == 255 * (80 * 80 - 64 * 48)
    for place, left, top in (("center", 32, 40), ("top", 32, 0), ("bottom-right", 64, 80), ("3,9", 3, 9)):
        mask = mask_of(place=place, width=128, height=128)
        assert mask.shape == (128, 128) and not mask[top : top + 48, left : left + 64].any()
        assert mask.sum() == 255 * (128 * 128 - 64 * 48)
    assert one(place="center", width=128, height=128).record("embedded")["place"] == [32, 40]


def test_an_expanded_picture_keeps_its_pixels_though_it_is_larger_than_usual() -> None:
    large = Image.new("RGB", (1024, 1024))
    assert (one(image=large, expand="left=512").settings.width, one(image=large).settings.width) == (1536, 1024)


def test_padding_draws_the_masked_part_at_the_model_s_own_size() -> None:
    job = one(mask_box="30,20,40,30", padding=2)
    assert (job.settings.width, job.settings.height) == (1024, 1024) and not job.notes
    assert job.region is not None and job.region.crop == Crop(28, 18, 42, 32)
    picture, mask = job.region.drawn_at((1024, 1024))
    assert picture.size == mask.size == (1024, 1024) and job.record("embedded")["padding"] == 2


def test_transparency_is_a_mask_unless_there_is_another() -> None:
    clear = PICTURE.copy()
    clear.putalpha(Image.new("L", PICTURE.size, 255))
    assert one(image=clear).region is None, "all of it can be seen"
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)))
    assert mask_of(image=clear)[0, 0] == 255 and mask_of(image=clear)[-1, -1] == 0
    assert mask_of(image=clear, mask_box="0,0,1,1").sum() == 255
    assert (one(image=clear).strength, one(image=clear, mask=WHITE).strength) == (1.0, 0.6)
    assert mask_of(image=np.asarray(clear)).shape == (48, 64)


def test_a_model_that_needs_a_reference_takes_the_masked_picture() -> None:
    job = one(EDIT, mask=WHITE)
    assert job.image_is_reference and len(job.prompt.references) == 1 and job.inputs().is_reference
    assert "references_sha256" not in job.record("cfg")
    given = one(EDIT, mask=WHITE, references=[PICTURE])
    assert not given.image_is_reference and "references_sha256" in given.record("cfg")
    with pytest.raises(RequestError, match="none is given; add references"):
        one(EDIT)


@pytest.mark.parametrize(("size", "why"), [((80, 63), "64 pixels"), ((600, 70), "8 times")])
def test_a_picture_that_no_reference_may_be_is_called_what_it_was_given_as(size: tuple[int, int], why: str) -> None:
    named = f"image: a picture of {size[0]}x{size[1]} is too"
    with pytest.raises(RequestError, match=f"^{named} .*which reads a masked picture as a reference: .*{why}"):
        one(manifests()["flux2-klein-4b"], image=Image.new("RGB", size), mask_box=(0, 0, 10, 10))


@pytest.mark.parametrize(
    "parameters",
    [
        {"mask": WHITE},
        {"mask_box": "10,20,30,40", "padding": 3},
        {"expand": "top=16"},
        {"place": "top-left", "width": 96, "height": 96},
    ],
)
def test_a_record_makes_the_same_job_again(parameters: dict[str, Any]) -> None:
    job = one(**parameters)
    record = job.record("embedded")
    given = {name: value for name, value in record.items() if name in PICTURE_FIELDS}
    again = one(**given, **({"mask": WHITE} if "mask" in parameters else {}))
    assert again.record("embedded") == record and again.settings == job.settings


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a mask without a picture": ({"image": None, "mask": WHITE}, "mask says which part .* no image is given"),
    "an array that is no mask": ({"mask": np.zeros(3)}, r"\[height, width\], or \[height, width, 3 or 4\], .* \(3,\)"),
    "a box without a picture": ({"image": None, "mask_box": "0,0,9,9"}, "mask_box says .* no image"),
    "margins without a picture": ({"image": None, "expand": "left=9"}, "expand says .* no image"),
    "a mask of another shape": (
        {"mask": Image.new("L", (64, 64), 255)},
        "the mask is 64x64, and the picture 64x48: it has another shape",
    ),
    "a mask with nothing white": ({"mask": BLACK}, "the mask has nothing white: .* would come back as it is"),
    "a mask of dark greys": ({"mask": Image.new("L", (64, 48), 127)}, "the mask has nothing white: .* from 128 of 255"),
    "a mask that is none": ({"mask": 5}, "mask is of the kind int"),
    "an array of another shape": ({"mask": np.zeros((4, 4, 4, 4))}, "mask: an array must have the shape"),
    "two masks": ({"mask": WHITE, "mask_box": "0,0,9,9"}, "give one of the two"),
    "a box outside": ({"mask_box": "0,0,65,9"}, "must lie in the picture of 64x48"),
    "a box turned round": ({"mask_box": "9,0,3,9"}, "the left and upper corner first"),
    "a box of three": ({"mask_box": "9,0,3"}, "mask_box '9,0,3': give x1,y1,x2,y2"),
    "a box in shares": ({"mask_box": [0.1, 0, 0.9, 1]}, "mask_box .* in pixels"),
    "a box of words": ({"mask_box": "a,b,c,d"}, "mask_box 'a,b,c,d'"),
    "padding without a mask": ({"padding": 8}, "padding .* no|none is given"),
    "negative padding": ({"mask": WHITE, "padding": -1}, "padding -1: give a number of pixels from 0 to 8192"),
    "no margins": ({"expand": "left=0"}, "expand 'left=0': give pixels for left, top, right, bottom"),
    "a side that is none": ({"expand": "middle=9"}, "expand 'middle=9'"),
    "a margin in words": ({"expand": "left=wide"}, "expand 'left=wide'"),
    "a negative margin": ({"expand": "left=-9,top=16"}, "expand 'left=-9,top=16'"),
    "margins beyond all": ({"expand": "left=8192"}, "would become 8256x48, and pictures may be up to 8192"),
    "two places": ({"expand": "left=9", "place": "top"}, "expand and place both"),
    "a place without a size": ({"place": "top"}, "give that picture's width and height"),
    "a place in a smaller picture": ({"place": "top", "width": 48, "height": 48}, "must be smaller than the picture"),
    "a place outside": ({"place": "70,0", "width": 128, "height": 128}, "x is up to 64, y up to 80"),
    "a place that is none": ({"place": "somewhere", "width": 128, "height": 128}, "place 'somewhere': give x,y"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_way_out(case: str) -> None:
    parameters, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as caught:
        one(**parameters)
    assert "\n" not in str(caught.value)


def test_unreadable_masks_are_named(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match="mask: .*mask.png cannot be read as a picture"):
        open_mask(tmp_path / "mask.png")
