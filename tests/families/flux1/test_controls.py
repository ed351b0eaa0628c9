"""FLUX.1's control networks against diffusers on stored draws, packed, in plans and records; what is refused.

tests/references/flux_controls.py makes the draws; tests/parity/test_flux_controls.py compares fresh ones with the same
functions.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.cli import main
from mlx_imagegen.edges import draw_edges
from mlx_imagegen.errors import ConfigError, ImagegenError, MismatchError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.base import Inputs
from mlx_imagegen.families.controls import ControlPicture, spread
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.masks import Region
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.request.job import usual_job
from tests.draw import drawn_data
from tests.families.flux1.test_tools import assembled_by_kind

DATA = drawn_data()
WAYS = {
    "union": ("one", "window", "cfg", "mask", "two"),
    "plain": ("one", "window", "cfg", "mask", "lora"),
    "xlabs": ("one",),
}
EACH = [(kind, way) for kind, ways in WAYS.items() for way in ways]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return assembled_by_kind(tmp_path_factory.mktemp("controls"), "flux_controls", "flux/dev")


def asked_of(folder: Path, way: str) -> dict[str, Any]:
    options = json.loads((folder / "options.json").read_text())
    names = ("prompt", "steps", "seed", "guidance", "width", "height")
    asked = {name: options[name] for name in names} | {"max_sequence_length": options["length"]}
    first, second = (folder / f"picture{index}.png" for index in (1, 2))
    told = {"kind": "depth"} if options["kind"] == "union" else {}
    window = {"start": 0.2, "end": 0.8} if way == "window" else {}
    control = [{"picture": second, "model": str(folder / "network"), "strength": 0.7, **told, **window}]
    if way == "two":
        control += [(first, str(folder / "network"), 0.4, "tile")]
    if way == "cfg":
        asked |= {"negative_prompt": options["negative_prompt"], "true_cfg": options["cfg"]}
    if way == "mask":
        asked |= {"image": first, "mask": folder / "mask.hard.png", "strength": options["strength"]}
    return asked | {"control": control}


def check_picture(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws, before the given picture is pasted around it: at most one level off on any pixel."""
    monkeypatch.setattr(Region, "paste", lambda region, image: image)
    loras = [folder / "style"] if way == "lora" else []  # of the model; the network stays as it is
    ours = np.asarray(load(folder, lora=loras).generate(**asked_of(folder, way)).image).astype(int)
    theirs = load_file(folder / "reference.safetensors")[way].astype(int)
    assert theirs.std() > 3 and np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures_equal_diffusers(
    kind: str, way: str, drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_picture(drawn(kind), way, monkeypatch)


def test_the_ways_differ() -> None:
    for kind in WAYS:
        found = load_file(DATA / "flux_controls" / kind / "reference.safetensors")
        pictures = [each.astype(int) for each in found.values()]
        assert all(np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i])


def test_outputs_are_spread_as_in_diffusers() -> None:
    """Union Pro 2.0's sixth is never used; XLabs' come by turns."""
    samples = [mx.array(index) for index in range(6)]
    assert [value.item() for value in spread(samples, 19)] == [index // 4 for index in range(19)]
    assert [value.item() for value in spread(samples[:2], 5, repeat=True)] == [0, 1, 0, 1, 0]
    assert spread([], 19) == []


def test_a_step_outside_the_window_is_not_controlled() -> None:
    picture = ControlPicture(mx.zeros((2, 2, 3)), "net", 0.7, start=0.2, end=0.8)
    assert [picture.strength_at(index, 5) for index in range(5)] == [0, 0.7, 0.7, 0.7, 0]
    assert [picture.strength_at(index, 4) for index in range(4)] == [0, 0.7, 0.7, 0]


def test_the_network_is_packed_as_the_model_is(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    """By a recipe, and next to a folder that was packed before."""
    asked = asked_of(drawn("plain"), "one")
    plain = np.asarray(load(drawn("plain")).generate(**asked).image).astype(int)
    quantize(drawn("plain"), quant="q8", output=tmp_path / "packed")
    for pipeline in (load(drawn("plain"), quant="q8"), load(tmp_path / "packed")):
        result = pipeline.generate(**asked)
        assert 0 < np.abs(np.asarray(result.image).astype(int) - plain).mean() < 4
        held = result.record["quantization"]
        assert "8-bit" in held["transformer"] and "8-bit" in held[f"transformer:{drawn('plain') / 'network'}"]


def test_a_plan_packs_the_network_as_the_model_is(
    drawn: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def seen(family: Any, *given: Any, **options: Any) -> Any:
        if not options:  # the plan that is asked for; others are recommendations
            planned.append(sum(network.component.held_bytes(2) for network in family.controls.values()))
        return plan(family, *given, **options)

    monkeypatch.setattr("mlx_imagegen.planning.plan.plan", seen)
    quantize(drawn("plain"), quant="q8", output=tmp_path / "packed")
    network = ["--control", str(drawn("plain") / "network"), "--chip", "m2"]
    for model in ([str(tmp_path / "packed")], [str(drawn("plain")), "--quant", "q8"], [str(drawn("plain"))]):
        assert main(["plan", "--model", *model, *network]) == 0
    packed, packing, plain = planned
    assert packed == packing < plain


def test_it_is_in_memory_in_the_loop_alone(drawn: Callable[[str], Path]) -> None:
    pipeline, asked = load(drawn("plain"), resident=False), asked_of(drawn("plain"), "one")
    name, loaded = f"transformer:{drawn('plain') / 'network'}", []
    pipeline.generate(**asked, on_step=lambda event: loaded.append(pipeline.family.components[name].loaded))
    assert all(loaded) and not pipeline.family.components[name].loaded
    pipeline.generate(**{key: value for key, value in asked.items() if key != "control"})
    assert name not in pipeline.family.components and pipeline.family.stages["denoise"] == ("transformer",)


def test_the_record_says_what_was_followed(drawn: Callable[[str], Path]) -> None:
    result = load(drawn("plain")).generate(**asked_of(drawn("plain"), "window"))
    (entry,) = result.record["control_sha256"]
    assert entry.pop("sha256") and entry == {
        "model": str(drawn("plain") / "network"), "strength": 0.7, "start": 0.2, "end": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["union", "plain"])
def test_edges_are_drawn_where_a_photo_is_given(kind: str, drawn: Callable[[str], Path], tmp_path: Path) -> None:
    """At the picture's size; as if they had been given themselves, with or without a kind for the network."""
    asked, pipeline = asked_of(drawn(kind), "one"), load(drawn(kind))
    rng = np.random.default_rng(3)
    photo = Image.fromarray(rng.integers(0, 255, (4, 6, 3), np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
    edges = draw_edges(photo.resize((asked["width"], asked["height"]), Image.Resampling.LANCZOS))
    entry = {"model": asked["control"][0]["model"], "strength": 1.0}
    by_photo = pipeline.generate(**asked | {"control": [{"picture": photo, "kind": "canny", **entry}]})
    told = {"kind": "canny"} if kind == "union" else {}
    by_edges = pipeline.generate(**asked | {"control": [{"picture": edges, **told, **entry}]})
    as_it_is = pipeline.generate(**asked | {"control": [{"picture": photo, **told, **entry}]}) if not told else None
    assert np.array_equal(np.asarray(by_photo.image), np.asarray(by_edges.image))
    assert by_photo.record["control_sha256"][0]["edges"] == [50, 200]
    assert any("its edges are drawn" in note for note in by_photo.report.notes)
    assert "edges" not in by_edges.record["control_sha256"][0]
    assert as_it_is is None or not np.array_equal(np.asarray(as_it_is.image), np.asarray(by_edges.image))


def test_without_strength_it_changes_nothing(drawn: Callable[[str], Path]) -> None:
    """But the noise: the picture is encoded all the same, and draws from the seed's stream first."""
    pipeline, asked = load(drawn("plain")), asked_of(drawn("plain"), "one")
    asked["control"] = [asked["control"][0] | {"strength": 0}]
    noise = np.random.default_rng(0).normal(size=pipeline.family.shape(pipeline.jobs(**asked)[0].settings))
    with_it, without = (
        np.asarray(pipeline.generate(**given, noise=noise).image)
        for given in (asked, {key: value for key, value in asked.items() if key != "control"})
    )
    assert np.array_equal(with_it, without)


@pytest.mark.parametrize("name", [name for name in manifests("control network") if name.startswith("flux")])
def test_published_networks_fit_flux_dev(name: str) -> None:
    """Names and shapes as published, none left over; the plan counts their weights."""
    flux = manifests()["flux-dev"]
    with shape_only_folder(flux) as folder, network_headers(name, flux) as files:
        family = open_family(flux, folder, WeightTransforms())
        job = usual_job(flux, family.size_multiple)
        alone = plan(family, job.settings, gpu=True)
        network = family.open_control(name, files, WeightTransforms())
        family.select_controls({name: network})
        both = plan(family, job.settings, gpu=True)
    more = [b.resident_bytes - a.resident_bytes for a, b in zip(alone.stages, both.stages, strict=True)]
    assert more == [0, network.component.held_bytes(2), 0] and both.disk_bytes - alone.disk_bytes == pytest.approx(
        manifests("control network")[name].download_bytes, rel=1e-4
    )
    assert 1.0 < both.step_flops / alone.step_flops < 1.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "has to be told what the picture is; give kind: canny, tile, depth"),
        ({"kind": "edges"}, "kind 'edges': .* follows canny, tile"),
        ({"model": None, "kind": None}, "takes no control pictures by itself; name a control network"),
        (
            {"model": "flux-controlnet-union-pro-3"},
            "neither a folder nor a control network's name; .* flux-controlnet-union",
        ),
        ({"model": "flux-controlnet-union"}, "knows no commit of InstantX/FLUX.1-dev-Controlnet-Union to download"),
    ],
)
def test_refused_with_a_way_out(change: dict[str, Any], message: str, drawn: Callable[[str], Path]) -> None:
    asked = asked_of(drawn("union"), "one")
    asked["control"] = [{key: value for key, value in (asked["control"][0] | change).items() if value is not None}]
    with pytest.raises(ImagegenError, match=message) as raised:
        load(drawn("union")).jobs(**asked)
    assert "\n" not in str(raised.value)


def test_networks_of_others_are_refused(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    asked, path = asked_of(drawn("plain"), "one"), drawn("plain") / "network/config.json"
    config, pipeline = json.loads(path.read_text()), load(drawn("plain"))
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(path.with_name("diffusion_pytorch_model.safetensors"))
    for change, kind, message in (
        (
            {"in_channels": 64},
            ConfigError,
            "'in_channels' is 64, and this model's is 16: the control network is of another",
        ),
        ({"_class_name": "QwenImageControlNetModel"}, ConfigError, "not a control network of FLUX.1"),
        ({"num_layers": 4}, MismatchError, "missing"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        asked["control"] = [(drawn("plain") / "picture1.png", str(folder))]
        with pytest.raises(kind, match=message):
            pipeline.jobs(**asked)
    asked["control"] = [(drawn("plain") / "picture1.png", str(path.parent), 1, "depth")]
    with pytest.raises(RequestError, match="sees by itself what the picture is"):
        pipeline.jobs(**asked)


def test_models_that_are_shown_pictures_take_no_network() -> None:
    fill = manifests()["flux-fill-dev"]
    with shape_only_folder(fill) as folder:
        family = open_family(fill, folder, WeightTransforms())
    with pytest.raises(RequestError, match="goes with FLUX.1 dev and schnell, not with their relatives"):
        family.check_inputs(Inputs(controls=(ControlPicture(mx.zeros((16, 16, 3)), "net"),)))
