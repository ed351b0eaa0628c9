"""FLUX.1's tools against diffusers on stored draws: Fill, Control and Kontext.

tests/references/flux_tools.py makes the draws; tests/parity/test_flux_tools.py compares fresh ones with the same
functions.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.inputs import InputKind, hole_condition, input_kind
from mlx_imagegen.families.flux1.references import reference_positions, reference_size
from mlx_imagegen.hub.manifest import Model, data_folder, manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.image import nearest_shape
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.masks import Region
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.draw import drawn_data
from tests.tiny import WEIGHTS, draw_flux, draw_transformer, to_original

DATA = drawn_data()
ROOT = Path(__file__).parents[3]
WAYS = {
    "fill": ("hard", "soft", "part"),
    "control": ("seed", "mask"),
    "kontext": ("seed", "cfg", "plain", "mask"),
    "lora": ("seed",),
}
EACH = [(kind, way) for kind, ways in WAYS.items() for way in ways]


def assembled(folder: Path, base: Path, place: Path) -> Path:
    """The draw with what it shares with its base."""
    place.mkdir(parents=True)
    for source in (base, folder):
        for path in source.iterdir():
            target = place / path.name
            if target.is_symlink():
                target.unlink()
            target.symlink_to(path)
    return place


def assembled_by_kind(place: Path, drawn: str, base: str) -> Callable[[str], Path]:
    """Of a kind its draw, assembled when it is first asked for; `base` may name the {kind}."""

    @functools.cache
    def kind_folder(kind: str) -> Path:
        return assembled(DATA / drawn / kind, DATA / base.format(kind=kind), place / kind)

    return kind_folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return assembled_by_kind(tmp_path_factory.mktemp("tools"), "flux_tools", "flux/dev")


def open_tool(folder: Path) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline, with the draw's small sizes of references in the manifest's place, and the draw's options."""
    options = json.loads((folder / "options.json").read_text())
    manifest = recognize(folder)
    if manifest.edits:
        manifest = replace(manifest, extras=manifest.extras | {"references": {"sizes": options["sizes"]}})
    if options["kind"] == "lora":
        return load(folder, lora=[folder / "control"]), options
    family = open_family(manifest, folder, WeightTransforms())
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, None), options


def asked_of(folder: Path, way: str, options: dict[str, Any]) -> dict[str, Any]:
    names = ("steps", "seed", "guidance", "width", "height")
    asked = {name: options[name] for name in names} | {"max_sequence_length": options["length"]}
    first, second = (folder / f"picture{index}.png" for index in (1, 2))
    mask = {"image": first, "mask": folder / f"mask.{'soft' if way == 'soft' else 'hard'}.png"}
    if options["kind"] == "fill":
        return asked | mask | ({"strength": options["strength"]} if way == "part" else {})
    if options["kind"] in ("control", "lora"):
        asked |= {"control": second}
    if way == "mask":
        if options["kind"] == "kontext":  # the size is that of the masked picture's shape
            asked = {name: value for name, value in asked.items() if name not in ("width", "height")}
        return asked | mask | {"strength": options["strength"]}
    if options["kind"] == "kontext":
        asked |= {"references": [second if way == "seed" else first]} if way != "plain" else {}
        asked |= {"negative_prompt": options["negative_prompt"], "true_cfg": options["cfg"]} if way == "cfg" else {}
    return asked


def check_picture(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws, before the given picture is pasted around it: at most one level off on any pixel."""
    pipeline, options = open_tool(folder)
    drawn: list[Image.Image] = []
    monkeypatch.setattr(Region, "paste", lambda region, image: drawn.append(image) or image)
    result = pipeline.generate(options["prompt"], **asked_of(folder, way, options))
    ours, theirs = (np.asarray(each).astype(int) for each in (result.image, reference_of(folder)[way]))
    assert ours.shape == theirs.shape and theirs.std() > 3 and bool(drawn) == ("mask" in asked_of(folder, way, options))
    assert np.abs(ours - theirs).max() <= 1


def reference_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "reference.safetensors")


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures_equal_diffusers(
    kind: str, way: str, drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_picture(drawn(kind), way, monkeypatch)


def test_an_original_file_draws_the_same(tmp_path: Path) -> None:
    """Of Fill: its header alone says how wide the input is."""
    diffusers = draw_flux(tmp_path / "diffusers")
    path = diffusers / "transformer/config.json"
    config = json.loads(path.read_text()) | {"in_channels": 2 * 16 + 256, "out_channels": 16}
    path.write_text(json.dumps(config))
    tensors = draw_transformer(FluxConfig.read(config, path), 0, mx.bfloat16)
    mx.save_safetensors(str(diffusers / WEIGHTS), tensors)
    (diffusers / "model_index.json").unlink()
    original = shutil.copytree(diffusers, tmp_path / "original")
    to_original(original)
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "image": Image.effect_noise((48, 32), 80), "mask_box": "0,0,24,32"}
    pictures = [np.asarray(load(folder).generate("a fox", **asked).image) for folder in (diffusers, original)]
    assert load(original).model.manifest.name == "flux-fill-dev" and np.array_equal(*pictures)


def test_the_ways_differ(drawn: Callable[[str], Path]) -> None:
    for kind in ("fill", "control", "kontext"):
        pictures = [picture.astype(int) for picture in reference_of(drawn(kind)).values()]
        assert all(
            a.shape != b.shape or np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i]
        ), kind


def test_a_packed_tool_draws_nearly_the_same(drawn: Callable[[str], Path]) -> None:
    """The wider input is kept in 16 bits by the recipes."""
    for kind in ("fill", "control"):
        _, options = open_tool(drawn(kind))
        asked = asked_of(drawn(kind), "hard" if kind == "fill" else "seed", options)
        packed = load(drawn(kind), quant="q8")
        ours = np.asarray(packed.generate(options["prompt"], **asked).image).astype(int)
        plain = np.asarray(load(drawn(kind)).generate(options["prompt"], **asked).image).astype(int)
        assert 0 < np.abs(ours - plain).mean() < 4


def test_two_references_stand_next_to_each_other(drawn: Callable[[str], Path]) -> None:
    places = reference_positions([(2, 3), (1, 2)])
    first = [[1, row, column] for row in range(2) for column in range(3)]
    assert places.tolist() == [*first, [1, 0, 3], [1, 0, 4]]
    pipeline, options = open_tool(drawn("kontext"))
    asked = asked_of(drawn("kontext"), "seed", options) | {"guidance": 2.5}
    both = [drawn("kontext") / f"picture{index}.png" for index in (1, 2)]
    one, two, turned = (
        np.asarray(pipeline.generate("a fox", **asked | {"references": shown}).image).astype(int)
        for shown in (both[:1], both, both[::-1])
    )
    assert np.abs(one - two).max() > 3 and np.abs(two - turned).max() > 3


def test_the_size_is_that_of_the_first_reference() -> None:
    manifest = manifests()["flux-kontext-dev"]
    sizes = manifest.extras["references"]["sizes"]
    assert len(sizes) == 17 and all([height, width] in sizes for width, height in sizes)
    wide, tall = Image.new("RGB", (1600, 900)), Image.new("RGB", (300, 900))
    job = usual_job(manifest, 16, references=[wide, tall])
    assert (job.settings.width, job.settings.height) == nearest_shape(wide.size, sizes, 16) == (1392, 752)
    assert reference_size(tall.size, sizes, 16) == (672, 1568)
    assert usual_job(manifest, 16).settings.width == 1024
    assert usual_job(manifest, 16, references=[wide], width=512, height=512).settings.width == 512


def test_a_mask_s_pixels_are_a_latent_s_channels() -> None:
    """Pixel (row, column) of a latent is channel 8 * row + column, and four latents make a token."""
    mask = np.zeros((16, 16), np.float32)
    mask[8 + 3, 5] = 1  # of the latent in the second row and first column
    made = np.array(hole_condition(mx.zeros((1, 4, 2, 2)), mx.array(mask), 8))
    assert made.shape == (1, 1, 16 + 256)
    assert np.argwhere(made[0, 0]).reshape(-1).tolist() == [16 + (8 * 3 + 5) * 4 + 2]


def test_the_input_s_width_says_what_a_model_is() -> None:
    assert [input_kind(width, 16, 8, "config.json") for width in (64, 128, 384)] == list(InputKind)
    with pytest.raises(ConfigError, match="config.json: 'in_channels' is 96; .* 64 .nothing., 128"):
        input_kind(96, 16, 8, "config.json")


FLUX = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True, "in_channels": 64}


@pytest.mark.parametrize(
    ("folder", "pipeline", "config", "name", "guidance"),
    [
        ("m", "FluxFillPipeline", FLUX | {"in_channels": 384, "out_channels": 64}, "flux-fill-dev", 30),
        ("m", None, FLUX | {"in_channels": 384, "out_channels": 64}, "flux-fill-dev", 30),
        ("m", "FluxKontextPipeline", FLUX, "flux-kontext-dev", 2.5),
        ("flux1-Kontext", "FluxPipeline", FLUX, "flux-kontext-dev", 2.5),
        ("m", "FluxControlPipeline", FLUX | {"in_channels": 128, "out_channels": 64}, "flux-depth-dev", 10),
        (
            "FLUX.1-Canny-dev",
            "FluxControlPipeline",
            FLUX | {"in_channels": 128, "out_channels": 64},
            "flux-canny-dev",
            30,
        ),
        ("FLUX.1-Krea-dev", "FluxPipeline", FLUX, "flux-krea-dev", 4.5),
        ("models--black-forest-labs--FLUX.1-Krea-dev/snapshots/abc", "FluxPipeline", FLUX, "flux-krea-dev", 4.5),
    ],
)
def test_a_tool_s_folder_is_recognized(
    folder: str, pipeline: str | None, config: dict[str, Any], name: str, guidance: float, tmp_path: Path
) -> None:
    place = tmp_path / folder
    (place / "transformer").mkdir(parents=True)
    (place / "transformer/config.json").write_text(json.dumps(config))
    if pipeline:
        (place / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    found = recognize(place)
    assert (found.name, found.defaults.guidance) == (name, guidance)


@pytest.mark.parametrize(("file", "width", "name"), [
    ("flux1-fill-dev", 384, "flux-fill-dev"), ("flux1-canny-dev", 128, "flux-canny-dev"),
    ("flux1-krea-dev", 64, "flux-krea-dev"), ("flux1-depth-dev", 128, "flux-depth-dev"),
    ("flux1-kontext-dev", 64, "flux-kontext-dev"), ("flux1-dev", 64, "flux-dev"),
])  # fmt: skip
def test_an_original_file_is_recognized_by_its_header(file: str, width: int, name: str, tmp_path: Path) -> None:
    tensors = {"img_in.weight": (8, width), "final_layer.linear.weight": (64, 8), "guidance_in.in_layer.weight": (8, 8)}
    mx.save_safetensors(str(tmp_path / f"{file}.safetensors"), {key: mx.zeros(shape) for key, shape in tensors.items()})
    assert recognize(tmp_path).name == name


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "fill without a mask": ("fill", {"image": "picture1.png"}, "draws a part of a picture; give image with mask"),
    "fill with nothing": ("fill", {}, "draws a part of a picture"),
    "control without a picture": ("control", {}, "follows a picture, and none is given; add control"),
    "control with two": ("control", {"control": ["picture1.png", "picture2.png"]}, "follow one picture, 2 are given"),
    "a control picture for fill": (
        "fill",
        {"image": "picture1.png", "mask_box": "0,0,9,9", "control": "picture1.png"},
        "takes no control pictures",
    ),
    "references for fill": (
        "fill",
        {"image": "picture1.png", "mask_box": "0,0,9,9", "references": ["picture1.png"]},
        "takes none; .* flux-kontext-dev",
    ),
    "a control picture that is none": ("control", {"control": "options.json"}, "control: options.json cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(
    case: str, drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, asked, message = REFUSED[case]
    monkeypatch.chdir(drawn(kind))
    pipeline, _ = open_tool(drawn(kind))
    with pytest.raises(RequestError, match=message):
        pipeline.jobs("a fox", seed=1, **asked)


def test_parts_that_do_not_fit_each_other_are_refused(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    folder = assembled(drawn("fill"), DATA / "flux/dev", tmp_path / "model")
    (folder / "transformer").unlink()
    config = shutil.copytree(drawn("fill") / "transformer", folder / "transformer") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 100}))
    with pytest.raises(ConfigError, match="'in_channels' is 100"):
        open_tool(folder)


@pytest.mark.parametrize("name", ["flux-fill-dev", "flux-depth-dev", "flux-kontext-dev"])
def test_the_published_tools_can_be_planned(name: str) -> None:
    """Full-size names and shapes bind with none left over; a reference of Kontext's is another 4096 tokens a step."""
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        job = usual_job(manifest, family.size_multiple)
        made = plan(family, job.settings, gpu=True, prompt=job.prompt)
        assert made.stages[1].resident_bytes == pytest.approx(17.24e9, rel=0.001), "without the modulation"
        if manifest.edits:
            job = usual_job(manifest, family.size_multiple, references=[Image.new("RGB", (1024, 1024))])
            shown = plan(family, job.settings, gpu=True, prompt=job.prompt)
            assert shown.step_flops > 1.8 * made.step_flops and shown.peak_bytes > made.peak_bytes


MEASURE = """
import sys
from pathlib import Path
from PIL import Image
from mlx_imagegen import load
from mlx_imagegen.planning.plan import plan
folder, side = sys.argv[1], 224
pipeline, picture = load(folder, resident=False), Image.effect_noise((side, side), 80).convert("RGB")
asked = {"seed": 1, "steps": 1, "width": side, "height": side}
asked |= {"references": [picture]} if "kontext" in folder else {"image": picture, "mask_box": "16,16,128,128"}
if "kontext" in folder:
    object.__setattr__(pipeline.family.files, "reference_sizes", ((side, side),))
(job,) = pipeline.jobs("a red circle", **asked)
made = plan(pipeline.family, job.settings, gpu=False, prompt=job.prompt)
pipeline.generate("a red circle", **asked)
lines = Path("/proc/self/status").read_text().splitlines()
print(made.peak_bytes, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="a process's peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["fill", "kontext"])
def test_the_peak_is_what_a_process_holds(kind: str, tmp_path: Path) -> None:
    """The demo model as if it were the tool: what a picture takes does not depend on what it shows."""
    demo, folder = data_folder("weights") / "demo/flux", tmp_path / kind
    shutil.copytree(demo, folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": f"Flux{kind.capitalize()}Pipeline"}))
    if kind == "fill":
        config, file = (next((folder / "transformer").glob(name)) for name in ("config.json", "*.safetensors"))
        config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 384, "out_channels": 64}))
        tensors = dict(mx.load(str(file)))
        narrow = tensors["x_embedder.weight"]
        tensors["x_embedder.weight"] = mx.concatenate([narrow, mx.zeros((narrow.shape[0], 320), narrow.dtype)], axis=1)
        mx.save_safetensors(str(file), tensors)
    env = os.environ | {"OPENBLAS_NUM_THREADS": "2"}  # the plan's figures are of two threads
    command = [sys.executable, "-c", MEASURE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    planned, measured = map(int, done.stdout.split())
    assert planned == pytest.approx(measured, rel=0.1)
