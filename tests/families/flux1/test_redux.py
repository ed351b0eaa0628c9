"""FLUX.1-Redux against transformers and diffusers on stored draws, in plans, memory and records; what is refused.

tests/references/flux_redux.py makes the draws; tests/parity/test_flux_adapters.py compares fresh ones with the same
functions.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, ImagegenError, MissingFileError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.family import Flux1
from mlx_imagegen.families.flux1.redux import FluxRedux
from mlx_imagegen.families.image_prompts import AdapterSource, ImagePrompt
from mlx_imagegen.hub.abilities import abilities
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import resolve, usual_job
from tests.draw import drawn_data
from tests.families.flux1.test_tools import assembled_by_kind

DATA = drawn_data()
KINDS, WAYS = ("dev", "schnell"), ("one", "both", "alone", "two")
TOLERANCE, TEXT_TOLERANCE = 2e-6, 2e-5  # T5's scores are not scaled down
RED = Image.new("RGB", (20, 10), "red")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return assembled_by_kind(tmp_path_factory.mktemp("redux"), "flux_redux", "flux/{kind}")


def asked_of(folder: Path, way: str) -> dict[str, Any]:
    options = json.loads((folder / "options.json").read_text())
    asked = {name: options[name] for name in ("prompt", "steps", "seed", "width", "height")}
    asked |= {"max_sequence_length": options["short"]} if way != "one" else {}
    first, second, model = folder / "picture1.png", folder / "picture2.png", str(folder / "redux")
    if way == "alone":
        return asked | {"prompt": "", "redux": [{"picture": second, "model": model}]}
    if way in ("two", "both"):
        asked |= {"redux": [(first, options["scales"][0], model), (second, options["scales"][1], model)]}
        return asked | ({"prompt": ""} if way == "two" else {})
    return asked | {"redux": [(first, 1.0, model)]}


def check_features(folder: Path) -> None:
    """SigLIP's and Redux's own outputs, which are about 1."""
    reference, family = load_file(folder / "reference.safetensors"), load(folder).family
    assert isinstance(family, Flux1)
    redux = FluxRedux("redux", folder / "redux", family.files.config)
    picture = Image.open(folder / "picture1.png")
    pixels = mx.array(redux._pixels.prepared(picture))[None]
    pairs = [
        (redux._encoder.load()(pixels), reference["features"]),
        (redux.encode([ImagePrompt(picture, 1.0, AdapterSource("redux", "redux"))]).tokens, reference["tokens"]),
    ]
    for ours, theirs in pairs:
        assert theirs.std() > 0.1 and ours.shape == theirs.shape
        assert np.abs(np.array(ours) - theirs).max() < TOLERANCE * np.abs(theirs).max()


def check_picture(folder: Path, way: str) -> None:
    """The end of the prompt as the transformer takes it, and the picture: at most one level off on any pixel."""
    pipeline, reference = load(folder), load_file(folder / "reference.safetensors")
    result = pipeline.generate(**asked_of(folder, way))
    (branch,) = pipeline._branches.values()
    txt, count = reference[f"{way}.txt"], reference["tokens"].shape[1]
    length = json.loads((folder / "options.json").read_text())["short"] if way != "one" else 512
    off = np.abs(np.array(branch.txt[:, -txt.shape[1] :]) - txt) / np.abs(txt).max()
    assert branch.txt.shape[1] == length + count and txt.shape[1] > count
    assert off[:, :-count].max() < TEXT_TOLERANCE and off[:, -count:].max() < TOLERANCE
    ours, theirs = np.asarray(result.image).astype(int), reference[way].astype(int)
    assert theirs.std() > 3 and np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_transformers(kind: str, drawn: Callable[[str], Path]) -> None:
    check_features(drawn(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pictures_equal_diffusers(kind: str, way: str, drawn: Callable[[str], Path]) -> None:
    check_picture(drawn(kind), way)


def test_the_ways_differ() -> None:
    for kind in KINDS:
        found = load_file(DATA / "flux_redux" / kind / "reference.safetensors")
        pictures = [found[way].astype(int) for way in WAYS]
        assert all(np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i])


def test_neither_tower_nor_text_encoders_are_in_memory_in_the_loop(drawn: Callable[[str], Path]) -> None:
    """One stage at a time; and where pictures are all of the prompt, no text encoder is read."""
    pipeline = load(drawn("dev"), resident=False)
    components = pipeline.family.components
    fill = type(components["transformer"].weights).fill
    read: list[str] = []
    seen: list[set[str]] = []
    looped: list[set[str]] = []

    def recorded(weights: Any, *arguments: Any, **more: Any) -> Any:
        read.append(weights.component)
        seen.append({name for name, each in components.items() if each.loaded})
        return fill(weights, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(components["transformer"].weights), "fill", recorded)
        pipeline.generate(
            **asked_of(drawn("dev"), "one"),
            on_step=lambda event: looped.append({name for name, each in components.items() if each.loaded}),
        )
    tower, embedder = (f"{part}:{drawn('dev') / 'redux'}" for part in ("image_encoder", "image_embedder"))
    assert read[:4] == [tower, embedder, "text_encoder", "text_encoder_2"]
    assert seen[:4] == [set(), {tower}, set(), {"text_encoder"}] and all(each == {"transformer"} for each in looped)
    read.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(components["transformer"].weights), "fill", recorded)
        pipeline.generate(**asked_of(drawn("dev"), "alone"))
    assert tower in read and "transformer" in read and not {"text_encoder", "text_encoder_2"} & {*read}


def test_pictures_are_encoded_once_for_all_prompts_and_seeds(
    drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = FluxRedux.encode
    monkeypatch.setattr(FluxRedux, "encode", lambda redux, images: encoded.append(len(images)) or encode(redux, images))
    pipeline, asked = load(drawn("schnell")), asked_of(drawn("schnell"), "two")
    pictures = pipeline.generate(**asked | {"prompt": ["a fox", "a map"], "seed": [1, 2]})
    again = pipeline.generate(**asked | {"prompt": "a map", "seed": 2})
    assert encoded == [2] and np.array_equal(np.asarray(again.image), np.asarray(pictures[3].image))
    first = asked["redux"][0]
    other = pipeline.generate(**asked | {"prompt": "a map", "seed": 2, "redux": [(first[0], 0.2, first[2])]})
    assert encoded == [2, 1] and not np.array_equal(np.asarray(other.image), np.asarray(again.image))


def test_a_packed_model_draws_nearly_the_same(drawn: Callable[[str], Path]) -> None:
    """Redux itself is never packed: it runs once a prompt."""
    asked = asked_of(drawn("dev"), "one")
    plain = np.asarray(load(drawn("dev")).generate(**asked).image).astype(int)
    result = load(drawn("dev"), quant="q8").generate(**asked)
    assert 0 < np.abs(np.asarray(result.image).astype(int) - plain).mean() < 4
    assert "8-bit" in result.record["quantization"]["transformer"]
    held = {part: how for part, how in result.record["quantization"].items() if ":" in part}
    assert set(held.values()) <= {"float32"}


def test_the_record_says_what_was_shown(drawn: Callable[[str], Path]) -> None:
    result = load(drawn("dev")).generate(**asked_of(drawn("dev"), "two"))
    first, second = result.record["redux_sha256"]
    assert first.pop("sha256") != second.pop("sha256")
    model = str(drawn("dev") / "redux")
    assert (first, second) == ({"scale": 0.9, "model": model}, {"scale": 0.4, "model": model})
    assert result.record["guidance"] == 2.5 and result.record["max_sequence_length"] == 16


def test_redux_has_its_own_guidance_and_length_of_prompts() -> None:
    """With schnell, too, T5 reads 512 tokens, as in diffusers; what is given counts."""
    for name, guidance in (("flux-dev", 2.5), ("flux-kontext-dev", 2.5), ("flux-schnell", 0.0)):
        (job,) = resolve(manifests()[name], 16, "a fox", 1, redux=RED)
        assert job.settings.guidance == guidance and job.settings.extras["max_sequence_length"] == 512, name
    (job,) = resolve(manifests()["flux-dev"], 16, "", 1, redux=[(RED, 0.5)], guidance=4, max_sequence_length=77)
    assert job.settings.guidance == 4 and job.settings.extras["max_sequence_length"] == 77
    assert job.prompt.images[0].adapter == ("redux", "flux-redux-dev") and job.prompt.images[0].scale == 0.5


def test_the_published_adapter_fits_every_flux(tmp_path: Path) -> None:
    """Names and shapes as published, the unused head aside; the plan has a stage for it, and its tokens."""
    for name in ("flux-dev", "flux-schnell", "flux-fill-dev", "flux-kontext-dev"):
        manifest, source = manifests()[name], AdapterSource("redux", "flux-redux-dev")
        with shape_only_folder(manifest) as folder, network_headers(source.name, manifest, "redux") as files:
            family = open_family(manifest, folder, WeightTransforms())
            alone = usual_job(manifest, family.size_multiple)
            before = plan(family, alone.settings, gpu=True, prompt=alone.prompt)
            family.select_adapters({source: family.open_adapter(source, files)})
            job = usual_job(manifest, family.size_multiple, redux=RED)
            made = plan(family, job.settings, gpu=True, prompt=job.prompt)
        adapters, encode, *_ = made.stages
        assert adapters.name == "adapters" and encode.name == "encode"
        published = manifests("image adapter")["flux-redux-dev"].download_bytes
        assert adapters.disk_bytes == pytest.approx(published, rel=1e-4)
        weights = [family.components[name].weights for name in adapters.components]
        used = sum(math.prod(each.shape(name)) for each in weights for name in each.needed)
        assert adapters.resident_bytes == 2 * used and 470e6 < used < 480e6  # SigLIP's head is not read
        tokens = family.reference_tokens(job.prompt, job.settings)
        assert tokens.adapted == 729 and "redux" in abilities(manifest)
        assert 1 < made.step_flops / before.step_flops < 1.35


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true_cfg": 3.0}, "stand in the prompt, and a negative prompt has none; leave true_cfg out"),
        ({"redux": 5}, "redux: give pictures, or .picture, scale, model."),
        ({"redux": [(RED, 11)]}, "redux: scale 11: give a number from 0 to 10"),
        ({"redux": [(RED, 1, "x", 2)]}, "redux: .*; 4 are given"),
        ({"redux": ["nowhere.png"]}, "redux: nowhere.png is not there"),
        (
            {"redux": [(RED, 1, "flux-redux-pro")]},
            "neither a folder nor an image adapter's name; .* flux-redux-dev. A folder with image_encoder, image_embed",
        ),
        ({"redux": [], "prompt": " "}, "the prompt is empty"),
    ],
)
def test_refused_with_a_way_out(change: dict[str, Any], message: str, drawn: Callable[[str], Path]) -> None:
    with pytest.raises(ImagegenError, match=message) as raised:
        load(drawn("dev")).jobs(**(asked_of(drawn("dev"), "one") | change))
    assert "\n" not in str(raised.value)


def test_models_without_it_say_which_have_it() -> None:
    for name in ("qwen-image", "flux-demo", "z-image"):
        with pytest.raises(RequestError, match=f"{name} takes no such pictures. Models that do: flux-"):
            resolve(manifests()[name], 16, "a fox", 1, redux=RED)


def test_folders_of_others_are_refused(drawn: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline, source = load(drawn("dev")), drawn("dev") / "redux"
    for part, file, change, kind, message in (
        ("image_embedder", "config.json", {"txt_in_features": 16}, ConfigError, "16, and this model's text has 40"),
        ("image_encoder", "config.json", {"hidden_size": 64}, ConfigError, "64, and its image_embedder has"),
        ("image_encoder", "config.json", {"hidden_act": "tanh"}, ConfigError, "'hidden_act' is 'tanh'"),
        ("image_encoder", "config.json", {"model_type": "clip"}, ConfigError, "this is a clip"),
        ("feature_extractor", "preprocessor_config.json", {"size": {"height": 9, "width": 9}}, ConfigError, "'size'"),
        ("feature_extractor", "preprocessor_config.json", {"image_std": [0, 0, 0]}, ConfigError, "'image_std'"),
        ("image_embedder", "config.json", None, MissingFileError, "whole repository"),
    ):
        folder = tmp_path / f"{part}{len(list(tmp_path.iterdir()))}"
        for path in source.rglob("*.*"):
            if path.is_file():
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
        changed = folder / part / file
        config = json.loads(changed.read_text())
        changed.unlink()
        if change is not None:
            changed.write_text(json.dumps(config | change))
        with pytest.raises(kind, match=message):
            pipeline.jobs(**(asked_of(drawn("dev"), "one") | {"redux": [(RED, 1, str(folder))]}))
