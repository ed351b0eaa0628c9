"""Qwen-Image's control networks against diffusers on stored draws; what is refused.

tests/references/qwen_controls.py makes the draws; tests/parity/test_qwen_controls.py compares fresh ones with the same
functions.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, ImagegenError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.controls import component_name
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.masks import Region
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.draw import drawn_data
from tests.families.flux1.test_tools import assembled_by_kind

DATA = drawn_data()
WAYS = {"union": ("one", "window", "cfg", "two"), "inpainting": ("hard", "soft", "cfg")}
EACH = [(kind, way) for kind, ways in WAYS.items() for way in ways]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return assembled_by_kind(tmp_path_factory.mktemp("controls"), "qwen_controls", "qwen_image/image")


def asked_of(folder: Path, way: str) -> dict[str, Any]:
    options = json.loads((folder / "options.json").read_text())
    asked = {name: options[name] for name in ("prompt", "steps", "seed", "width", "height")} | {"guidance": 1.0}
    first, second = (folder / f"picture{index}.png" for index in (1, 2))
    network = str(folder / "network")
    if way == "cfg":
        asked |= {"negative_prompt": options["negative_prompt"], "guidance": options["cfg"]}
    if options["network"] == "inpainting":
        asked |= {"image": first, "mask": folder / f"mask.{'soft' if way == 'soft' else 'hard'}.png", "strength": 1.0}
        return asked | {"control": [(first, network, 0.7)]}
    window = {"start": 0.2, "end": 0.8} if way == "window" else {}
    control: list[Any] = [{"picture": second, "model": network, "strength": 0.7, **window}]
    return asked | {"control": control + ([(first, network, 0.4)] if way == "two" else [])}


def check_picture(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws, before the given picture is pasted around it: at most one level off on any pixel."""
    monkeypatch.setattr(Region, "paste", lambda region, image: image)
    ours = np.asarray(load(folder).generate(**asked_of(folder, way)).image).astype(int)
    theirs = load_file(folder / "reference.safetensors")[way].astype(int)
    assert theirs.std() > 3 and np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures_equal_diffusers(
    kind: str, way: str, drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_picture(drawn(kind), way, monkeypatch)


def test_the_ways_differ() -> None:
    for kind in WAYS:
        found = load_file(DATA / "qwen_controls" / kind / "reference.safetensors")
        pictures = [each.astype(int) for each in found.values()]
        assert all(np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i])


def test_both_branches_in_one_batch(drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    asked = asked_of(drawn("union"), "cfg")
    apart = np.asarray(load(drawn("union")).generate(**asked).image).astype(int)
    monkeypatch.setattr("mlx_imagegen.families.qwen_image.family.QwenImage._in_one_batch", lambda family, tokens: True)
    together = np.asarray(load(drawn("union")).generate(**asked).image).astype(int)
    assert np.abs(apart - together).max() <= 1


def test_the_hole_s_surroundings_are_the_picture_s_own(drawn: Callable[[str], Path]) -> None:
    asked = asked_of(drawn("inpainting"), "hard")
    result = load(drawn("inpainting")).generate(**asked)
    size = asked["width"], asked["height"]
    given = np.asarray(Image.open(asked["image"]).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    mask = np.asarray(Image.open(asked["mask"]).resize(size, Image.Resampling.LANCZOS))
    drawn_picture = np.asarray(result.image)
    assert np.array_equal(drawn_picture[mask == 0], given[mask == 0])
    assert np.abs(drawn_picture.astype(int) - given)[mask == 255].max() > 20


def test_packed(drawn: Callable[[str], Path]) -> None:
    asked = asked_of(drawn("union"), "one")
    plain = np.asarray(load(drawn("union")).generate(**asked).image).astype(int)
    result = load(drawn("union"), quant="q8").generate(**asked)
    assert 0 < np.abs(np.asarray(result.image).astype(int) - plain).mean() < 4
    assert "8-bit" in result.record["quantization"][component_name(str(drawn("union") / "network"))]


@pytest.mark.parametrize(
    "name", [name for name, each in manifests("control network").items() if each.family == "qwen_image"]
)
def test_published_networks_fit_qwen_image(name: str) -> None:
    """Names and shapes as published, none left over; the plan counts their weights."""
    qwen = manifests()["qwen-image"]
    with shape_only_folder(qwen) as folder, network_headers(name, qwen) as files:
        family = open_family(qwen, folder, WeightTransforms())
        job = usual_job(qwen, family.size_multiple)
        alone = plan(family, job.settings, gpu=True)
        network = family.open_control(name, files, WeightTransforms())
        family.select_controls({name: network})
        both = plan(family, job.settings, gpu=True)
    more = [b.resident_bytes - a.resident_bytes for a, b in zip(alone.stages, both.stages, strict=True)]
    assert more == [0, network.component.held_bytes(2), 0]
    published = manifests("control network")[name].download_bytes
    assert both.disk_bytes - alone.disk_bytes == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.6}, "fills the hole from noise; give strength 1, not 0.6"),
        ({"mask": None, "strength": None, "image": None}, "fills a hole; give image with mask"),
    ],
)
def test_refused_with_a_way_out(change: dict[str, Any], message: str, drawn: Callable[[str], Path]) -> None:
    asked = {key: value for key, value in (asked_of(drawn("inpainting"), "hard") | change).items() if value is not None}
    with pytest.raises(ImagegenError, match=message):
        load(drawn("inpainting")).jobs(**asked)


def test_networks_of_flux_are_refused(drawn: Callable[[str], Path]) -> None:
    asked, pipeline = asked_of(drawn("union"), "one"), load(drawn("union"))
    asked["control"][0]["model"] = str(DATA / "flux_controls/plain/network")
    with pytest.raises(ConfigError, match="a FluxControlNetModel, and here a QwenImageControlNetModel is needed"):
        pipeline.jobs(**asked)
    asked["control"][0]["model"] = "flux-controlnet-union"
    with pytest.raises(ImagegenError, match=r"flux-controlnet-union goes with FLUX.1, .* for this: qwen-image-control"):
        pipeline.jobs(**asked)
