"""Sizes and pixels of reference pictures against upstream's (tests/data/hidream_o1/recorded)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.families.base import Prompt, ReferenceTokens
from mlx_imagegen.families.hidream_o1.family import HiDreamO1
from mlx_imagegen.families.hidream_o1.references import (
    Rules,
    reference_side,
    resized,
    shown_dimensions,
    shown_size,
)
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.request.job import resolve
from mlx_imagegen.request.options import layout_boxes
from mlx_imagegen.request.sizes import fitted, kept_aspect, shape
from tests.draw import drawn_data
from tests.families.hidream_o1.checks import opened, settings

STORED = drawn_data() / "hidream_o1"
RECORDED = Path(__file__).parents[2] / "data" / "hidream_o1" / "recorded"
CASES = json.loads((RECORDED / "preprocess_cases.json").read_text())
MANIFEST = manifests()["hidream-o1"]
RULES = {"patch": 32, "shown_side": 384, "shown_multiple": 32}
BOXES = [[0.1, 0.45, 0.15, 0.8], {"bbox": [0.55, 0.95, 0.1, 0.6], "text": "b"}]
LAYOUT_CASES = json.loads((RECORDED / "layout_cases.json").read_text())  # by `pattern` pictures


def pattern(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with edges and slopes, the same everywhere."""
    rows, columns = np.indices((height, width))
    channels = 3 * rows + (5 + seed) * columns, rows * columns // 64, rows ^ columns
    return Image.fromarray((np.stack(channels, axis=-1) % 256).astype(np.uint8))


def digest(picture: Image.Image) -> str:
    return hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()[:16]


def test_sizes_of_references() -> None:
    for case in CASES["resize_pilimage"]:
        assert fitted(tuple(case["in"]), case["max_size"], 32) == tuple(case["out"])
        if max(case["out"]) < 1500:
            assert resized(Image.new("RGB", case["in"]), case["max_size"], 32).size == tuple(case["out"])


def test_sizes_of_what_the_tower_is_shown() -> None:
    for case in CASES["calculate_dimensions"]:
        assert shown_dimensions(case["max_size"], case["ratio"], 32) == tuple(case["out"])


def test_presets() -> None:
    for case in CASES["find_closest_resolution"]:
        assert shape(MANIFEST, 32, f"{case['in'][0]}:{case['in'][1]}") == tuple(case["out"])


@pytest.mark.parametrize("count", range(1, 13))
def test_sizes_by_the_number_of_references(count: int) -> None:
    cases = [case for case in CASES["cond_grid_by_K"] if case["K"] == count]
    assert cases
    for case in cases:
        side = reference_side(count, case["target_max"])
        width, height = fitted(tuple(case["ref_in"]), side, 32)
        assert (side, [width, height]) == (case["ref_max_size"], case["ref_out"])
        assert shown_dimensions(shown_size(count, 384), width / height, 32) == tuple(case["cond_wh"])


@pytest.mark.parametrize(
    ("name", "count", "boxes"), [("1ref_flow_match", 1, []), ("2ref_flash", 2, []), ("2ref_layout_unipc", 2, BOXES)]
)
def test_pixels_are_upstreams(name: str, count: int, boxes: list) -> None:
    pictures = [Image.open(RECORDED / f"ref{index}.png").convert("RGB") for index in range(count)]
    drawn = layout_boxes(MANIFEST, boxes, count)
    got = Rules((128, 96), **RULES, boxes=drawn).prepared(pictures)
    want = json.loads((RECORDED / "references.json").read_text())[name]
    assert len(got) == len(want)
    for reference, recorded in zip(got, want, strict=True):
        for picture, told in ((reference.pixels, recorded["read"]), (reference.shown, recorded["shown"])):
            assert list(picture.size) == told["size"]
            assert hashlib.sha256(np.asarray(picture).tobytes()).hexdigest() == told["sha256"]


@pytest.mark.parametrize("case", LAYOUT_CASES, ids=range(len(LAYOUT_CASES)))
def test_layouts_are_upstreams(case: dict[str, Any]) -> None:
    """Sizes at which the second fit changes the framed references; boxes in all of upstream's spellings."""
    keep_aspect = case.get("keep_original_aspect", False)
    pictures = [pattern(*size, seed=index) for index, size in enumerate(case["given"])]
    asked = {"layout": case["layout"], "references": pictures}
    asked |= (
        {"keep_original_aspect": True} if keep_aspect else dict(zip(("width", "height"), case["target"], strict=True))
    )
    (job,) = resolve(MANIFEST, 32, "a fox", 0, **asked)
    assert [job.settings.width, job.settings.height] == case["target"]
    assert any("layout has no effect" in note for note in job.notes) == keep_aspect
    boxes = () if keep_aspect else dict(job.prompt.options).get("layout", ())
    rules = Rules(tuple(case["target"]), **RULES, boxes=boxes, kept_side=2048 if keep_aspect else None)
    got = rules.prepared(pictures)
    assert [[list(size) for size in (read.size, shown.size)] for read, shown in got] == [
        list(pair) for pair in zip(case["read"], case["shown"], strict=True)
    ]
    assert [[digest(read), digest(shown)] for read, shown in got] == case["sha256"]
    known = rules.sizes([picture.size for picture in pictures])
    assert known == [(read.size, shown.size) for read, shown in got]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("boxes", [(), ((0.1, 0.45, 0.15, 0.8),)])
def test_sizes_are_known_without_the_pixels(count: int, boxes: tuple) -> None:
    """Narrow, large (halved first) and small ones."""
    given = [(97, 640), (1599, 1025), (40, 33), (512, 512), (300, 200)] * 2
    rules = Rules((256, 384), **RULES, boxes=boxes)
    got = rules.prepared([Image.new("RGB", size) for size in given[:count]])
    want = [(reference.pixels.size, reference.shown.size) for reference in got]
    assert rules.sizes(given[:count]) == want and len(want) == count + len(boxes)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("extra", [{}, {"keep_original_aspect": True}, {"layout": (BOXES[0],)}])
def test_tokens_are_those_of_the_sequence(count: int, extra: dict) -> None:
    """Against what `encode` really gives: the pictures' places in the prompt, the patches after the target's."""
    family, layout = opened(STORED), extra.get("layout")
    pictures = tuple(Image.new("RGB", size) for size in ((70, 40), (33, 90))[:count])
    prompt = Prompt("a fox", pictures, (("layout", layout),) if layout and count else ())
    kept = {"keep_original_aspect": True} if "keep_original_aspect" in extra and count == 1 else {}
    asked = settings(32, 24, **kept)
    said = family.reference_tokens(prompt, asked)
    branch, _ = family.encode(prompt, asked)
    bare, _ = family.encode(Prompt("a fox"), asked)
    references = 0 if branch.references is None else branch.references.shape[1]
    marks = 2 * (count + bool(layout and count))  # around each picture in the prompt
    assert said == ReferenceTokens(branch.txt.shape[1] - bare.txt.shape[1] - marks, references)
    assert branch.positions.shape[1] == bare.positions.shape[1] + said.prompt + marks + said.image
    assert bool(said.image) == bool(said.prompt) == bool(count)


def test_tokens_at_full_size() -> None:
    """By the recorded cases: one picture next to 2048x2048 is as large as it, two are three quarters a side."""
    with shape_only_folder(MANIFEST) as folder:
        family = HiDreamO1.open(folder, MANIFEST, WeightTransforms())
        square = Image.new("RGB", (1024, 1024))
        for count, image, shown in ((0, 0, 0), (1, 64**2, 144), (2, 2 * 48**2, 2 * 144), (5, 5 * 24**2, 5 * 81)):
            said = family.reference_tokens(Prompt("a fox", (square,) * count), settings(2048, 2048))
            assert said == ReferenceTokens(shown, image), count


def test_many_boxes_have_colours_for_all_references() -> None:
    boxes = tuple((0.05 * index, 0.05 * index + 0.3, 0.1, 0.5) for index in range(12))
    got = Rules((128, 96), **RULES, boxes=boxes).prepared([Image.new("RGB", (64, 64))] * 10)
    assert len(got) == 11


def test_keep_original_aspect() -> None:
    """The picture is as large as its one reference becomes, and the reference is not resized a second time."""
    size = kept_aspect(MANIFEST, 32, [(640, 480)])
    assert size == (2336, 1760)
    (got,) = Rules(size, **RULES, kept_side=2048).prepared([Image.new("RGB", (640, 480))])
    assert got.pixels.size == size


def test_a_kept_aspect_leaves_the_layout_out() -> None:
    """In the sequence as well: one reference, and no drawing of boxes."""
    family, picture = opened(STORED), Image.new("RGB", (70, 40))
    asked = settings(32, 24, keep_original_aspect=True)
    said = family.reference_tokens(Prompt("a fox", (picture,), (("layout", ((0.1, 0.45, 0.15, 0.8),)),)), asked)
    assert said == family.reference_tokens(Prompt("a fox", (picture,)), asked)


def test_lines_of_the_layout() -> None:
    """The larger box is drawn first, by a twentieth of the mean side, and each smaller one a fifth of that thinner."""
    small, large = (0.6, 0.9, 0.6, 0.9), (0.1, 0.5, 0.1, 0.5)
    got = Rules((2048, 2048), **RULES, boxes=(small, large)).prepared([Image.new("RGB", (64, 64))] * 2)
    drawing = np.asarray(got[-1].pixels)  # half as large: three references
    widths = [int((drawing[round(row * 1024)] == colour).all(-1).sum()) // 2 for row, colour in
              ((0.3, (255, 0, 0)), (0.75, (0, 180, 0)))]  # fmt: skip
    assert abs(widths[0] - 51) <= 1 and abs(widths[1] - 41) <= 1
    assert np.asarray(got[0].pixels)[0, 0].tolist() == [0, 180, 0] and np.asarray(got[1].pixels)[0, 0].tolist() == [
        255,
        0,
        0,
    ]


def test_large_references_are_halved_first() -> None:
    """By the mean of four pixels: a pattern of single dots goes grey, and odd sides lose a row before anything is
    scaled."""
    dots = np.zeros((516, 516, 3), np.uint8)
    dots[::2, ::2] = dots[1::2, 1::2] = 255
    got = np.asarray(resized(Image.fromarray(dots), 64, 32))
    assert got.shape == (64, 64, 3) and np.abs(got.astype(int) - 128).max() <= 1
    assert fitted((1025, 1599), 512, 32) == (384, 640)  # as 512x799; 608 high without the halving
