"""XLabs' IP-Adapter and InstantX' against transformers, diffusers and torch on stored draws, in plans, memory and
records; what is refused.

tests/references/flux_ip_adapter.py makes the draws; tests/parity/test_flux_adapters.py compares fresh ones with the
same functions.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError, ConfigError, ImagegenError, MissingFileError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.family import Flux1
from mlx_imagegen.families.flux1.ip_adapter import FluxIpAdapter
from mlx_imagegen.families.image_prompts import AdapterSource
from mlx_imagegen.hub.abilities import abilities
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.sharing import Sharing
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import resolve, usual_job
from mlx_imagegen.vision.clip import ClipVisionConfig
from tests.draw import drawn_data
from tests.families.flux1.test_tools import assembled_by_kind

DATA = drawn_data()
KINDS, WAYS = ("dev", "schnell"), ("one", "two", "cfg", "instantx.one", "instantx.two")
TOLERANCE = 2e-6
RED = Image.new("RGB", (20, 10), "red")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return assembled_by_kind(tmp_path_factory.mktemp("ip-adapter"), "flux_ip_adapter", "flux/{kind}")


def asked_of(folder: Path, way: str) -> dict[str, Any]:
    """`way`: one picture, two with scales of their own, or one with a negative prompt, which is shown a black one; or
    the same with another adapter's name before it."""
    adapter, way = way.split(".") if "." in way else ("adapter", way)
    options = json.loads((folder / "options.json").read_text())
    asked = {name: options[name] for name in ("prompt", "steps", "seed", "width", "height")}
    asked |= {"max_sequence_length": options["length"]}
    if manifests()[load(folder).model.manifest.name].guidance == "embedded":
        asked["guidance"] = options["guidance"]
    first, second, model = folder / "picture1.png", folder / "picture2.png", str(folder / adapter)
    scales = options["scales"]
    if way == "cfg":
        asked |= {"negative_prompt": options["negative_prompt"], "true_cfg": options["cfg"]}
        return asked | {"ip_adapter": [{"picture": second, "scale": scales[0], "model": model}]}
    return asked | {"ip_adapter": [(first, scales[0], model), (second, scales[1], model)][: 1 + (way == "two")]}


def open_adapter(folder: Path, name: str) -> FluxIpAdapter:
    family = load(folder).family
    assert isinstance(family, Flux1)
    return FluxIpAdapter(name, folder / name, family.files.config)


def check_features(folder: Path) -> None:
    """The tower's vector, and what the adapter makes of one."""
    reference = load_file(folder / "reference.safetensors")
    for name, prefix in (("adapter", ""), ("instantx", "instantx.")):
        adapter = open_adapter(folder, name)
        first, second = (
            adapter._encoder.load()(mx.array(adapter._pixels(Image.open(folder / picture)))[None])
            for picture in ("picture1.png", "picture2.png")
        )
        tokens = adapter._adapter.load().image_proj(first)
        pairs = (second, reference[f"{prefix}vector"]), (tokens, reference[f"{prefix}tokens"][0])
        for ours, theirs in pairs:
            assert theirs.std() > 0.1 and ours.shape == theirs.shape
            assert np.abs(np.array(ours) - theirs).max() < TOLERANCE * np.abs(theirs).max()


def check_picture(folder: Path, way: str) -> None:
    """At most one level off on any pixel, and not what is drawn without the adapter."""
    pipeline, asked = load(folder), asked_of(folder, way)
    ours = np.asarray(pipeline.generate(**asked).image).astype(int)
    theirs = load_file(folder / "reference.safetensors")[way].astype(int)
    assert theirs.std() > 3 and np.abs(ours - theirs).max() <= 1
    asked.pop("ip_adapter")
    assert np.abs(np.asarray(pipeline.generate(**asked).image).astype(int) - theirs).max() > 3


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_transformers(kind: str, drawn: Callable[[str], Path]) -> None:
    check_features(drawn(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pictures_equal_diffusers(kind: str, way: str, drawn: Callable[[str], Path]) -> None:
    check_picture(drawn(kind), way)


def test_names_as_diffusers_knows_them_are_the_same(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(drawn("dev") / "adapter", tmp_path / "adapter")
    theirs = load_file(folder / "model.safetensors")
    pairs = ("ip_adapter_proj_model.", "image_proj."), ("double_blocks.", "ip_adapter.")
    pairs += (
        ("processor.ip_adapter_double_stream_k_proj", "to_k_ip"),
        (
            "processor.ip_adapter_double_stream_v_proj",
            "to_v_ip",
        ),
    )
    ours = {}
    for name, value in theirs.items():
        for old, new in pairs:
            name = name.replace(old, new)
        ours[name] = value
    assert not ours.keys() & theirs.keys()
    save_file(ours, folder / "model.safetensors")
    asked = asked_of(drawn("dev"), "one")
    pictures = [
        load(drawn("dev")).generate(**asked | {"ip_adapter": [(asked["ip_adapter"][0][0], 0.9, str(place))]}).image
        for place in (folder, drawn("dev") / "adapter")
    ]
    assert np.array_equal(*map(np.asarray, pictures))


def test_a_scale_of_0_is_no_picture(drawn: Callable[[str], Path]) -> None:
    pipeline, asked = load(drawn("dev")), asked_of(drawn("dev"), "one")
    picture, _, model = asked.pop("ip_adapter")[0]
    shown = pipeline.generate(**asked, ip_adapter=[(picture, 0, model)]).image
    assert np.array_equal(np.asarray(shown), np.asarray(pipeline.generate(**asked).image))


def test_the_adapter_is_not_in_memory_in_the_loop(drawn: Callable[[str], Path]) -> None:
    """Nor is it read again for another seed."""
    pipeline = load(drawn("dev"), resident=False)
    looped: list[set[str]] = []
    encoded: list[int] = []
    encode = FluxIpAdapter.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxIpAdapter, "encode", lambda self, images: encoded.append(len(images)) or encode(self, images))
        pipeline.generate(
            **asked_of(drawn("dev"), "two") | {"seed": [1, 2]},
            on_step=lambda _: looped.append({n for n, each in pipeline.family.components.items() if each.loaded}),
        )
    assert encoded == [2] and looped and all(each == {"transformer"} for each in looped)


def test_a_packed_model_draws_nearly_the_same(drawn: Callable[[str], Path]) -> None:
    """The adapter itself is never packed: it runs once a prompt."""
    asked = asked_of(drawn("dev"), "two")
    plain = np.asarray(load(drawn("dev")).generate(**asked).image).astype(int)
    result = load(drawn("dev"), quant="q8").generate(**asked)
    assert 0 < np.abs(np.asarray(result.image).astype(int) - plain).mean() < 4
    assert "8-bit" in result.record["quantization"]["transformer"]
    held = {part: how for part, how in result.record["quantization"].items() if ":" in part}
    assert set(held.values()) <= {"float32"}


def test_the_record_says_what_was_shown(drawn: Callable[[str], Path]) -> None:
    result = load(drawn("dev")).generate(**asked_of(drawn("dev"), "two"))
    first, second = result.record["ip_adapter_sha256"]
    assert first.pop("sha256") != second.pop("sha256")
    model = str(drawn("dev") / "adapter")
    assert (first, second) == ({"scale": 0.9, "model": model}, {"scale": 0.4, "model": model})


def test_with_redux_both_count(drawn: Callable[[str], Path]) -> None:
    """Redux stands in the prompt, and the adapter is looked at."""
    redux = DATA / "flux_redux/dev/redux"
    pipeline, asked = load(drawn("dev")), asked_of(drawn("dev"), "one")
    both = np.asarray(pipeline.generate(**asked, redux=[(RED, 1, str(redux))]).image).astype(int)
    (branch,) = pipeline._branches.values()
    assert len(branch.attended) == 1 and branch.txt.shape[1] > asked["max_sequence_length"]
    without = {name: value for name, value in asked.items() if name != "ip_adapter"}
    alone = np.asarray(pipeline.generate(**without, redux=[(RED, 1, str(redux))]).image).astype(int)
    assert np.abs(both - alone).max() > 3


@pytest.mark.parametrize(("adapter", "tower"), [("flux-ip-adapter", 304e6), ("flux-ip-adapter-instantx", 428e6)])
def test_the_published_adapter_fits_every_flux(adapter: str, tower: float) -> None:
    """Names and shapes as diffusers loads them, or InstantX' code; the plan has a stage for it, and no more tokens.
    `tower`: numbers of CLIP's ViT-L/14, of SigLIP's so400m."""
    for name in ("flux-dev", "flux-schnell"):
        manifest, source = manifests()[name], AdapterSource("ip_adapter", adapter)
        with shape_only_folder(manifest) as folder, network_headers(source.name, manifest, "ip_adapter") as files:
            family = open_family(manifest, folder, WeightTransforms())
            alone = usual_job(manifest, family.size_multiple)
            before = plan(family, alone.settings, gpu=True, prompt=alone.prompt)
            family.select_adapters({source: family.open_adapter(source, files)})
            job = usual_job(manifest, family.size_multiple, ip_adapter=[(RED, 1, adapter)])
            made = plan(family, job.settings, gpu=True, prompt=job.prompt)
        adapters, encode, *_ = made.stages
        assert adapters.name == "adapters" and encode.name == "encode" and encode.resident_bytes > 9e9
        published = manifests("image adapter")[adapter].download_bytes
        assert adapters.disk_bytes == pytest.approx(published + 4 * tower, rel=1e-2)
        assert adapters.working_bytes < 1e9  # the widest layer makes all tokens of one vector
        assert made.step_flops == before.step_flops and "ip_adapter" in abilities(manifest)


def test_the_whole_clip_is_read_too(drawn: Callable[[str], Path]) -> None:
    """As published: the tower's fields are a part, next to what older versions of transformers write there."""
    flat = json.loads((drawn("dev") / "adapter/image_encoder/config.json").read_text())
    part = {name: value for name, value in flat.items() if name != "projection_dim"} | {
        "top_k": 50,
        "projection_dim": 9,
    }
    whole = {"model_type": "clip", "projection_dim": flat["projection_dim"], "vision_config": part, "text_config": {}}
    assert ClipVisionConfig.read(whole, "config.json") == ClipVisionConfig.read(flat, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ip_adapter": 5}, "ip_adapter: give pictures, or .picture, scale, model."),
        ({"ip_adapter": [(RED, 11)]}, "ip_adapter: scale 11: give a number from 0 to 10"),
        ({"ip_adapter": [(RED, 1, "x", 2)]}, "ip_adapter: .*; 4 are given"),
        ({"ip_adapter": ["nowhere.png"]}, "ip_adapter: nowhere.png is not there"),
        (
            {"ip_adapter": [(RED, 1, "flux-redux-dev")]},
            "neither a folder nor an image adapter's name; .* A folder with the adapter's .safetensors file, and CLIP",
        ),
        ({"ip_adapter": [RED]}, "knows no commit of XLabs-AI/flux-ip-adapter to download"),
        ({"prompt": " "}, "the prompt is empty"),
    ],
)
def test_refused_with_a_way_out(change: dict[str, Any], message: str, drawn: Callable[[str], Path]) -> None:
    with pytest.raises(ImagegenError, match=message) as raised:
        load(drawn("dev")).jobs(**(asked_of(drawn("dev"), "one") | change))
    assert "\n" not in str(raised.value)


def test_instantx_s_pickle_is_refused_with_how_to_convert_it(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(drawn("dev") / "instantx", tmp_path / "instantx")
    (folder / "model.safetensors").rename(folder / "ip-adapter.bin")
    asked = asked_of(drawn("dev"), "one") | {"ip_adapter": [(RED, 1, str(folder))]}
    with pytest.raises(CheckpointError, match='ip-adapter.bin is a pickle, .* python -c "import torch.*"') as raised:
        load(drawn("dev")).jobs(**asked)
    assert "\n" not in str(raised.value)


def test_a_tower_of_the_other_adapter_is_refused(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(drawn("dev") / "instantx", tmp_path / "instantx")
    shutil.rmtree(folder / "image_encoder")
    shutil.copytree(drawn("dev") / "adapter/image_encoder", folder / "image_encoder")
    asked = asked_of(drawn("dev"), "one") | {"ip_adapter": [(RED, 1, str(folder))]}
    with pytest.raises(ConfigError, match="'projection_dim' is 24, and the adapter next to it has 8"):
        load(drawn("dev")).jobs(**asked)


def test_models_without_it_say_which_have_it() -> None:
    for name in ("qwen-image", "flux-demo", "z-image"):
        with pytest.raises(RequestError, match=f"{name} takes no such pictures. Models that do: flux-"):
            resolve(manifests()[name], 16, "a fox", 1, ip_adapter=RED)


def test_shared_layers_are_refused(drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(drawn("dev"))
    monkeypatch.setattr(pipeline.family, "sharing", Sharing.__new__(Sharing))
    with pytest.raises(RequestError, match="use one machine"):
        pipeline.family.encode_images([job.prompt for job in pipeline.jobs(**asked_of(drawn("dev"), "one"))])


@pytest.mark.parametrize(
    ("file", "change", "kind", "message"),
    [
        ("image_encoder/config.json", {"projection_dim": 7}, ConfigError, "7, and the adapter next to it has"),
        ("image_encoder/config.json", {"hidden_act": "tanh"}, ConfigError, "'hidden_act' is 'tanh'"),
        ("image_encoder/config.json", {"model_type": "siglip_vision_model"}, ConfigError, "'projection_dim'"),
        ("image_encoder/config.json", None, MissingFileError, "put config.json and .* openai/clip.* google/siglip"),
        ("model.safetensors", "norm.weight", CheckpointError, "this is no IP-Adapter in XLabs' layout"),
        ("model.safetensors", "1.processor.ip_adapter_double_stream_k_proj.bias", CheckpointError, "1.to_k_ip.bias"),
    ],
)
def test_folders_of_others_are_refused(
    file: str, change: Any, kind: type, message: str, drawn: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(drawn("dev") / "adapter", tmp_path / "adapter")
    path = folder / file
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        save_file({name: each for name, each in load_file(path).items() if not name.endswith(change)}, path)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=message):
        load(drawn("dev")).jobs(**(asked_of(drawn("dev"), "one") | {"ip_adapter": [(RED, 1, str(folder))]}))
