"""Masks: pictures that equal diffusers' inpaint pipelines, and a rest that is the given picture's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image, ImageFilter
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import RequestError
from mlx_imagegen.masks import (
    DRAWN,
    FEATHER,
    HALF,
    Crop,
    Margins,
    Region,
    box_mask,
    cover,
    crop_around,
    drawn_pixels,
    expanded,
    feathered,
    fit,
    keep_outside,
    sampled,
)
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.sampling import Solver, UniPC, denoise, euler, flash, timesteps_schedule
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import open_pipeline
from tests.tiny import draw_flux

DATA = drawn_data()
FOLDERS = (DATA / "flux/dev", DATA / "qwen_image/image", DATA / "qwen_image/edit")
STORED = [(folder, way) for folder in FOLDERS for way in load_file(folder / "inpaint.safetensors")]
PADDING = 5  # of `crop`, as tests/references/inpaint.py has it


def open_drawn(folder: Path) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline, and what its reference pictures were asked with."""
    if (folder / "prompts.json").exists():
        options = json.loads((folder / "prompts.json").read_text())
        asked = {name: options[name] for name in ("steps", "seed", "guidance", "width", "height")}
        return load(folder), options | {
            "asked": asked | {"max_sequence_length": options["length"], "image": folder / "picture.png"},
            "cfg": {"negative_prompt": options["negative_prompt"], "true_cfg": options["cfg"]},
        }
    options = json.loads((folder / "options.json").read_text())
    asked = {name: options[name] for name in ("steps", "seed")} | {"guidance": 1.0}
    if options["kind"] == "image":
        asked |= {name: options[name] for name in ("width", "height")} | {"image": folder / "picture1.png"}
    else:
        asked |= {"image": folder / "picture.inpaint.png", "width": 128, "height": 64}
    cfg = {"negative_prompt": options["negative_prompt"], "guidance": options["cfg"]}
    return open_pipeline(folder), options | {"asked": asked, "cfg": cfg}


def check_inpaint(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws is at most one level off; what is pasted around it is the given picture bit for bit."""
    reference = load_file(folder / "inpaint.safetensors")[way].astype(int)
    pipeline, options = open_drawn(folder)
    mask = folder / f"mask.{'soft' if way == 'soft' else 'hard'}.png"
    asked = options["asked"] | {"mask": mask, "strength": 1.0 if way == "all" else options["strength"]}
    asked |= options["cfg"] if way == "cfg" else {"padding": PADDING} if way == "crop" else {}
    drawn: list[Image.Image] = []
    paste = Region.paste
    monkeypatch.setattr(Region, "paste", lambda region, image: drawn.append(image) or paste(region, image))
    result = pipeline.generate(options["prompt"], **asked)
    (job,) = pipeline.jobs(options["prompt"], **asked)
    assert reference.std() > 3 and job.region is not None
    if way != "crop":
        assert np.abs(levels(drawn[0]) - reference).max() <= 1
    given, weights = given_and_weights(job.region, drawn[0].size)
    ours = levels(result.image)
    assert ours.shape == given.shape and (weights == 0).any() and (weights == 255).any()
    assert np.array_equal(ours[weights == 0], given[weights == 0])
    assert np.abs(ours - reference)[weights == 255].max() <= 1
    assert np.abs(ours - given)[weights == 255].max() > 3, "else the model drew nothing there"


def given_and_weights(region: Region, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    picture, mask = (region.picture, region.mask) if region.crop else region.drawn_at(size)
    return levels(picture), levels(feathered(mask))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("folder", "way"), STORED, ids=lambda value: getattr(value, "name", value))
def test_pictures_equal_diffusers(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_inpaint(folder, way, monkeypatch)


def test_a_white_mask_equals_no_mask_and_a_box_its_mask(flux_folder: Path) -> None:
    pipeline = load(flux_folder)
    picture = Image.effect_noise((48, 32), 90).convert("RGB")
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "image": picture, "strength": 0.8}

    def made(**more: Any) -> np.ndarray:
        return levels(pipeline.generate("a fox", **asked, **more).image)

    assert np.array_equal(made(mask=np.full((32, 48), True)), made())
    boxed = box_mask((48, 32), Crop(16, 0, 48, 24))
    assert np.array_equal(made(mask_box=[16, 0, 48, 24]), made(mask=boxed))
    assert not np.array_equal(made(mask=boxed), made())


def test_a_black_mask_gives_the_picture_back() -> None:
    """A request with one is refused; what pastes would give back the picture bit for bit."""
    picture, drawn = (Image.effect_noise((48, 32), spread).convert("RGB") for spread in (90, 30))
    black = Image.new("L", picture.size)
    assert np.array_equal(levels(Region(picture, black).paste(drawn)), levels(picture))
    assert np.array_equal(levels(Region(picture, black, crop_around(black, (32, 32), 0)).paste(drawn)), levels(picture))


SCHEDULE = timesteps_schedule([900.0, 600.0, 250.0])
SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": lambda: euler(SCHEDULE),
    "unipc": lambda: UniPC(SCHEDULE),
    "flash": lambda: flash(SCHEDULE, lambda index: mx.random.normal((1, 5, 4), key=mx.random.key(index)), (1.0, 0.5)),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_outside_is_the_clean_picture_whatever_the_solver(solver: str) -> None:
    clean, noise = (mx.random.normal((1, 5, 4), key=mx.random.key(key)) for key in (7, 8))
    mask = mx.array([[1.0, 0, 0, 1, 0]])[..., None] * mx.ones((1, 5, 4))
    start = 0.9 * noise + 0.1 * clean
    velocity = keep_outside(lambda x, index: mx.sin(3 * x + index), mask, clean, SCHEDULE.sigmas)
    steps = list(denoise(velocity, start, SCHEDULE, SOLVERS[solver]()))
    kept = np.array(mask) == 0
    assert np.abs(np.array(steps[-1].x - clean))[kept].max() < 1e-5
    assert np.abs(np.array(steps[0].denoised - clean))[kept].max() < 1e-5, "a preview shows it at once"
    assert np.abs(np.array(steps[-1].x - clean))[~kept].min() > 1e-3


def test_outside_has_each_step_s_noise() -> None:
    """What diffusers puts back after a step: the picture with as much of the starting noise as the next sigma says."""
    clean, noise = (mx.random.normal((1, 5, 4), key=mx.random.key(key)) for key in (7, 8))
    velocity = keep_outside(lambda x, index: x, mx.zeros((1, 5, 4)), clean, SCHEDULE.sigmas)
    for step in denoise(velocity, 0.9 * noise + 0.1 * clean, SCHEDULE, euler(SCHEDULE)):
        sigma = SCHEDULE.sigmas[step.index + 1]
        assert np.abs(np.array(step.x - (sigma * noise + (1 - sigma) * clean))).max() < 1e-6


def test_places_are_drawn_where_their_first_pixel_is() -> None:
    mask = np.zeros((16, 24), np.float32)
    mask[8, 16] = mask[15, 7] = 1
    assert np.array_equal(np.array(sampled(mx.array(mask), (2, 3))), [[0, 0, 0], [0, 0, 1]])
    greys = Image.fromarray(np.array([[HALF - 1, HALF]], np.uint8))
    assert np.array(drawn_pixels(greys)).tolist() == [[0, 1]]


def test_a_packed_model_leaves_the_rest_alone(tmp_path: Path) -> None:
    """By a recipe while it is read, and from a folder that was packed before."""
    source = draw_flux(tmp_path / "source")
    noise = np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
    asked: dict[str, Any] = {"image": noise, "mask_box": (16, 0, 64, 40), "strength": 0.7, "seed": 1, "steps": 3}
    plain = levels(load(source).generate("a fox", **asked).image)
    for pipeline in (load(source, quant="q8"), load(quantize(source, tmp_path / "packed", quant="q8"))):
        result = pipeline.generate("a fox", **asked)
        assert "8-bit" in result.record["quantization"]["transformer"]
        ours = levels(result.image)
        outside = np.ones((64, 64), bool)
        outside[:40, 16:] = False
        assert np.array_equal(ours[outside], noise[outside])
        assert 0 < np.abs(ours - plain)[~outside].mean() < 4 < np.abs(ours - noise)[~outside].mean()


def test_the_drawn_picture_fades_in_inside_the_mask() -> None:
    mask = box_mask((60, 40), Crop(20, 10, 60, 40))
    share = levels(feathered(mask))
    assert (share[levels(mask) == 0] == 0).all()
    row = share[25, 20:]
    assert (np.diff(row[: FEATHER - 1]) > 0).all() and (row[FEATHER - 1 :] == DRAWN).all(), "up to the picture's end"
    assert np.array_equal(row[:FEATHER], [round(DRAWN * (d + 1) / FEATHER) for d in range(FEATHER)])
    line = levels(feathered(box_mask((60, 40), Crop(20, 10, 22, 30))))
    assert line.max() > 0, "what is thinner than the border is not lost"


def test_soft_edges_are_kept_as_they_are() -> None:
    soft = box_mask((120, 80), Crop(40, 25, 80, 55)).filter(ImageFilter.GaussianBlur(8))
    off = np.abs(levels(feathered(soft)) - levels(soft))
    assert off.max() <= 8, "only where a pixel is next to none"
    picture, drawn = Image.new("RGB", soft.size, "black"), Image.new("RGB", soft.size, "white")
    assert np.array_equal(levels(Region(picture, soft).paste(drawn))[..., 0], levels(feathered(soft)))


CROPS = [
    (Crop(10, 10, 20, 30), (64, 64), 4, (1, 6, 29, 34)),
    (Crop(0, 0, 3, 3), (64, 32), 2, (0, 0, 10, 5)),
    (Crop(90, 50, 100, 60), (32, 64), 0, (90, 40, 100, 60)),
    (Crop(5, 20, 95, 24), (16, 16), 10, (0, 0, 100, 60)),
]


@pytest.mark.parametrize(("box", "size", "padding", "crop"), CROPS)
def test_crops(box: Crop, size: tuple[int, int], padding: int, crop: tuple[int, ...]) -> None:
    """What diffusers' get_crop_region gives; tests/parity compares with it on many more."""
    assert crop_around(box_mask((100, 60), box), size, padding) == crop


@pytest.mark.parametrize("size", [(48, 48), (64, 32), (31, 57)])
def test_cover_undoes_fit(size: tuple[int, int]) -> None:
    """For a picture without detail, to the levels that resizing twice costs."""
    rows, columns = np.indices((40, 60))
    picture = Image.fromarray(np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8))
    fitted = fit(picture, size)
    assert fitted.size == size
    assert np.abs(levels(cover(fitted, picture.size)) - levels(picture))[4:-4, 4:-4].max() <= 6


def test_margins_are_drawn_and_hold_the_edge_s_colours() -> None:
    picture = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    larger, mask = expanded(picture, None, Margins(left=2, bottom=1))
    assert larger.size == mask.size == (5, 3)
    assert np.array_equal(levels(larger)[:2, 2:], levels(picture))
    assert np.array_equal(levels(larger)[0, :2], [levels(picture)[0, 0]] * 2)
    assert levels(mask).tolist() == [[255, 255, 0, 0, 0], [255, 255, 0, 0, 0], [255] * 5]
    _, both = expanded(picture, box_mask((3, 2), Crop(2, 0, 3, 1)), Margins(left=1))
    assert levels(both).tolist() == [[255, 0, 0, 255], [255, 0, 0, 0]]


def test_a_picture_is_expanded_around_its_own_pixels(flux_folder: Path) -> None:
    picture = Image.effect_noise((48, 32), 90).convert("RGB")
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "image": picture}
    pipeline = load(flux_folder)
    wide = pipeline.generate("a fox", expand="left=16,top=32", **asked)
    assert wide.image.size == (64, 64) and wide.record["expand"] == "left=16,top=32" and wide.record["strength"] == 1
    assert np.array_equal(levels(wide.image)[32:, 16:], levels(picture))
    placed = pipeline.generate("a fox", place="bottom-right", width=64, height=64, **asked)
    assert np.array_equal(levels(placed.image), levels(wide.image)) and placed.record["place"] == [16, 32]


def test_the_transparent_part_is_drawn(flux_folder: Path) -> None:
    picture = Image.effect_noise((48, 32), 90).convert("RGBA")
    opaque = box_mask((48, 32), Crop(0, 0, 24, 32))
    picture.putalpha(opaque)
    pipeline, asked = load(flux_folder), {"seed": 1, "steps": 2}
    clear = pipeline.generate("a fox", image=picture, **asked)
    inverted = opaque.point(lambda level: 255 - level)
    masked = pipeline.generate("a fox", image=picture.convert("RGB"), mask=inverted, strength=1.0, **asked)
    assert np.array_equal(levels(clear.image), levels(masked.image))
    assert np.array_equal(levels(clear.image)[:, :24], levels(picture.convert("RGB"))[:, :24])
    assert clear.record["image_sha256"] != masked.record["image_sha256"]


def test_a_mask_between_the_places_is_refused(flux_folder: Path) -> None:
    picture = Image.new("RGB", (48, 32))
    asked: dict[str, Any] = {"image": picture, "mask_box": [1, 1, 7, 7]}
    with pytest.raises(RequestError, match="so small that it lies between the 6x4 places"):
        load(flux_folder).jobs("a fox", **asked)
    assert load(flux_folder).jobs("a fox", **asked, padding=2)
