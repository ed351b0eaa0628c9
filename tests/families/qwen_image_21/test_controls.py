"""Qwen-Image-2.1's Fun control networks against a reading of VideoX-Fun's in torch, on a stored draw; what is refused.

tests/references/qwen_image_21_controls.py makes the draw; tests/parity/test_qwen_image_21.py compares fresh ones with
the same functions.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.edges import draw_edges
from mlx_imagegen.errors import ConfigError, ImagegenError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.controls import component_name
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.masks import Region
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.conftest import Ran
from tests.draw import drawn_data
from tests.families.flux1.test_tools import assembled
from tests.families.qwen_image_21.test_qwen_image_21 import MODEL, open_pipeline, options_of

CONTROLS = drawn_data() / "qwen_image_21/controls"
WAYS = ("plain", "one", "window", "cfg", "two", "hole", "inpaint")  # "reference" loads a vision tower: parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assembled(CONTROLS, MODEL, tmp_path_factory.mktemp("controls") / "model")


def asked_of(folder: Path, way: str) -> dict[str, Any]:
    options = options_of(folder)
    asked = {name: options[name] for name in ("prompt", "steps", "seed", "width", "height")}
    asked |= {"guidance": 1.0, "transparent": True}
    first, second = (folder / f"picture{index}.png" for index in (1, 2))
    network = str(folder / "network.safetensors")
    if way in ("cfg", "hole"):
        asked |= {"negative_prompt": options["negative_prompt"], "guidance": options["cfg"]}
    if way in ("hole", "inpaint"):
        asked |= {"image": first, "mask": folder / "mask.hard.png", "strength": 1.0}
    if way == "reference":
        asked |= {"references": [second]}
    entry: dict[str, Any] = {"picture": second, "model": network, "strength": 0.7}
    entry |= {"start": 0.2, "end": 0.8} if way == "window" else {}
    entry |= {"picture": first, "kind": "inpaint"} if way == "inpaint" else {}
    control = [] if way == "plain" else [entry]
    return asked | {"control": control + ([(first, network, 0.4)] if way == "two" else [])}


def check_picture(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws, before the given picture is pasted around it: at most one level off on any pixel."""
    monkeypatch.setattr(Region, "paste", lambda region, image: image)
    ours = np.asarray(open_pipeline(folder).generate(**asked_of(folder, way)).image).astype(int)
    theirs = load_file(folder / "reference.safetensors")[way].astype(int)
    assert ours.shape == theirs.shape and theirs.std() > 3
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("way", WAYS)
def test_pictures_equal_the_reference(way: str, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture(drawn, way, monkeypatch)


def test_the_ways_differ() -> None:
    pictures = [each.astype(int) for each in load_file(CONTROLS / "reference.safetensors").values()]
    assert all(np.abs(a - b).max() > 10 for i, a in enumerate(pictures) for b in pictures[:i])


def test_the_text_is_read_once_for_all_steps_that_follow_alike(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefix = QwenImage21Transformer.prefix
    monkeypatch.setattr(
        QwenImage21Transformer, "prefix", lambda self, *given: read.append(len(given[-1])) or prefix(self, *given)
    )
    pipeline = open_pipeline(drawn)
    for way, expected in (("one", [1]), ("two", [1]), ("window", [0, 1, 0]), ("cfg", [1, 1])):
        read.clear()
        pipeline.generate(**asked_of(drawn, way))
        assert read == expected, way


def test_packed(drawn: Path) -> None:
    """As the model is; the layer that reads the picture has too few columns."""
    asked = asked_of(drawn, "one")
    plain = np.asarray(open_pipeline(drawn).generate(**asked).image).astype(int)
    result = load(drawn, quant="q8").generate(**asked)
    assert 0 < np.abs(np.asarray(result.image).astype(int) - plain).mean() < 4
    assert "8-bit" in result.record["quantization"][component_name(str(drawn / "network.safetensors"))]
    assert result.record["control_sha256"][0]["strength"] == 0.7


def test_canny_of_a_photo_follows_its_edges(drawn: Path, tmp_path: Path) -> None:
    asked, pipeline = asked_of(drawn, "one"), open_pipeline(drawn)
    photo = Image.open(drawn / "picture2.png").convert("RGB")
    size = asked["width"], asked["height"]
    draw_edges(photo.resize(size, Image.Resampling.LANCZOS)).save(tmp_path / "edges.png")
    asked["control"][0] |= {"kind": "canny"}
    made = [np.asarray(pipeline.generate(**asked).image)]
    asked["control"][0] |= {"picture": tmp_path / "edges.png"}
    made.append(np.asarray(pipeline.generate(**asked).image))
    assert np.array_equal(*made)


def test_without_strength_nothing_is_followed(drawn: Path) -> None:
    asked, plain = asked_of(drawn, "one"), load_file(CONTROLS / "reference.safetensors")["plain"]
    asked["control"][0] |= {"strength": 0}
    assert np.abs(np.asarray(open_pipeline(drawn).generate(**asked).image).astype(int) - plain).max() <= 1


def test_from_a_picture(drawn: Path) -> None:
    """Without a hole the image is where the drawing starts, next to what is followed."""
    asked, pipeline = asked_of(drawn, "one") | {"strength": 0.4}, open_pipeline(drawn)
    changes: list[dict[str, Any]] = [{}, {"control": []}, {"image": drawn / "picture3.png"}]
    given = (asked | {"image": drawn / "picture1.png"} | change for change in changes)
    followed, *others = (np.asarray(pipeline.generate(**each).image).astype(int) for each in given)
    assert all(np.abs(followed - other).max() > 10 for other in others)


@pytest.mark.parametrize("base", ["qwen-image-2.1", "qwen-image-2.1-turbo"])
def test_the_published_network_fits(base: str) -> None:
    """Names and shapes as published, none left over; the plan counts its weights, and its passes with every branch."""
    name, model = "qwen-image-2.1-fun-controlnet-union", manifests()[base]
    with shape_only_folder(model) as folder, network_headers(name, model) as files:
        family = open_family(model, folder, WeightTransforms())
        network = family.open_control(name, files, WeightTransforms())
        settings = usual_job(model, family.size_multiple).settings
        both = replace(settings, cfg=4.0)
        alone = [plan(family, each, gpu=True) for each in (settings, both)]
        family.select_controls({name: network})
        made = [plan(family, each, gpu=True) for each in (settings, both)]
    assert len(network.component.weights.needed) == len(network.component.weights.checkpoint) == 180
    assert made[0].disk_bytes - alone[0].disk_bytes == 7_550_959_616  # and a header of 20,288
    more = [b.resident_bytes - a.resident_bytes for a, b in zip(alone[0].stages, made[0].stages, strict=True)]
    assert more == [0, 7_550_959_616, 0]
    one, two = (b.step_flops - a.step_flops for a, b in zip(alone, made, strict=True))
    assert 0.5 < one / alone[0].step_flops < 0.6 and two == pytest.approx(2 * one)
    one, two = (b.working_bytes - a.working_bytes for a, b in zip(alone, made, strict=True))
    assert two - one == 128 * network.prefix_values * 2


WRONG = {
    "channels": ("control_img_in.weight", (192, 8), "reads so many channels: 8, where this model needs 9"),
    "an axis too few": ("control_img_in.weight", (192,), "reads so many channels: 0, where this model needs 9"),
    "width": ("control_img_in.weight", (64, 9), "gives tokens of the width 64, where this model needs 192"),
    "a block too many": (
        "control_blocks.9.after_proj.weight",
        (192, 192),
        "its blocks are 4, where this model needs 3",
    ),
    "a block's shape": ("control_blocks.1.after_proj.weight", (192, 96), r"control_blocks\.1\.after_proj\.weight"),
    "a tensor too few": ("control_blocks.1.after_proj.bias", None, r"1 missing: control_blocks\.1\.after_proj\.bias"),
}


@pytest.mark.parametrize("case", WRONG)
def test_networks_that_do_not_fit(case: str, drawn: Path, tmp_path: Path) -> None:
    name, shape, message = WRONG[case]
    tensors = load_file(drawn / "network.safetensors")
    tensors.pop(name, None)
    tensors |= {} if shape is None else {name: np.zeros(shape, np.float32)}
    save_file(tensors, tmp_path / "network.safetensors")
    asked = asked_of(drawn, "one")
    asked["control"][0] |= {"model": str(tmp_path / "network.safetensors")}
    with pytest.raises(ImagegenError, match=message):
        open_pipeline(drawn).jobs(**asked)


def test_networks_of_other_models_are_named(drawn: Path, tmp_path: Path) -> None:
    """Here, and this one where it is given to an older model."""
    asked, pipeline = asked_of(drawn, "one"), open_pipeline(drawn)
    older = drawn_data() / "qwen_controls/union/network"
    fun = {"control_img_in.weight": np.zeros((3, 2)), "control_blocks.0.img_mod.1.weight": np.zeros((3, 2))}
    save_file(fun, tmp_path / "fun.safetensors")
    for other, title in (
        (older, "Qwen-Image's control network"),
        (older / "diffusion_pytorch_model.safetensors", "Qwen-Image's control network"),
        (drawn_data() / "flux_controls/plain/network", "FLUX.1's control network"),
        (tmp_path / "fun.safetensors", "a Fun control network of Qwen-Image, which this library does not run"),
    ):
        asked["control"][0]["model"] = str(other)
        with pytest.raises(ConfigError, match=f"this is {title}. Qwen-Image-2.1 takes Fun control networks"):
            pipeline.jobs(**asked)
    asked["control"][0]["model"] = "qwen-image-controlnet-union"
    with pytest.raises(RequestError, match=r"goes with Qwen-Image, .* for this: qwen-image-2.1-fun-controlnet-union"):
        pipeline.jobs(**asked)
    asked = {"prompt": "a fox", "control": [{"picture": drawn / "picture2.png"}]}
    for model in ("qwen_image/image", "flux/dev"):
        asked["control"][0]["model"] = str(drawn / "network.safetensors")
        with pytest.raises(ConfigError, match="this is Qwen-Image-2.1's Fun control network"):
            load(drawn_data() / model).jobs(**asked)
        asked["control"][0]["model"] = "qwen-image-2.1-fun-controlnet-union"
        with pytest.raises(RequestError, match="goes with Qwen-Image-2.1, and"):
            load(drawn_data() / model).jobs(**asked)


@pytest.mark.parametrize(
    ("way", "change", "message"),
    [
        ("hole", {"strength": 0.6}, "fills the hole from noise; give strength 1, not 0.6"),
        ("one", {"kind": "inpaint"}, "kind inpaint fills a hole; give image with mask"),
        ("one", {"kind": "depth"}, "sees by itself what the picture is; leave kind out"),
        ("one", {"model": None}, "takes no control pictures by itself; name a control network"),
    ],
)
def test_refused_with_a_way_out(way: str, change: dict[str, Any], message: str, drawn: Path) -> None:
    asked = asked_of(drawn, way)
    (asked if "strength" in change else asked["control"][0]).update(change)
    with pytest.raises(ImagegenError, match=message):
        open_pipeline(drawn).jobs(**asked)


def test_info_says_what_the_file_is(drawn: Path, cli: Callable[..., Ran]) -> None:
    told = cli("info", drawn / "network.safetensors").out
    assert "Qwen-Image-2.1's Fun control network" in told and "used_by    Qwen-Image-2.1, as control" in told
    refused = cli("generate", "a fox", "--model", drawn / "network.safetensors")
    assert refused.code and "give a model, and this file as control with a picture" in refused.err


def test_a_file_with_the_mlp_s_inputs_in_one_weight(drawn: Path, tmp_path: Path) -> None:
    """As ComfyUI's copies of the file have it, the gate's rows first."""
    tensors, family = load_file(drawn / "network.safetensors"), open_pipeline(drawn).family
    for block in range(3):
        halves = [tensors.pop(f"control_blocks.{block}.img_mlp.{part}.weight") for part in ("gate_layer", "proj")]
        tensors[f"control_blocks.{block}.img_mlp.gate_up.weight"] = np.concatenate(halves)
    save_file(tensors, tmp_path / "network.safetensors")
    one, other = (
        dict(tree_flatten(family.open_control("network", path, WeightTransforms()).component.load().parameters()))
        for path in (drawn / "network.safetensors", tmp_path)
    )
    assert one.keys() == other.keys() and all(mx.array_equal(one[name], other[name]) for name in one)


def test_shortcuts(drawn: Path) -> None:
    """Predicted steps, and a second branch that stops, go with a network as without one."""
    asked, pipeline = asked_of(drawn, "cfg") | {"steps": 6}, open_pipeline(drawn)
    full = np.asarray(pipeline.generate(**asked).image).astype(int)
    assert np.array_equal(full, np.asarray(pipeline.generate(**asked, cache=1e-9).image))
    for shortcut in ({"cache": 2.0}, {"guidance_until": 0.4}):
        made = pipeline.generate(**asked, **shortcut)
        assert np.abs(np.asarray(made.image).astype(int) - full).max() > 3
