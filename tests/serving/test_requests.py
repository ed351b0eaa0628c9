"""Fields -> a request: names, kinds, limits, models and LoRAs by name; nothing that a client sends is a path."""

from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.errors import ImagegenError, LoraError, QuantizationError, RequestError, UnknownModelError
from mlx_imagegen.request.parameters import BY_NAME, PARAMETERS
from mlx_imagegen.serving import catalogue as catalogues
from mlx_imagegen.serving.catalogue import Catalogue, fits
from mlx_imagegen.serving.requests import TAKEN, Limits, from_text, parse_json, read_request

from .conftest import SMALL, in_base64, png

LIMITS = Limits(sent_pixels=4000, pixels=256 * 256, count=3, steps=20, prompt_chars=50, pictures=2, loras=2)


@pytest.fixture(scope="module")
def catalogue(models_folder: Path) -> Catalogue:
    return Catalogue("flux-demo", models_folder)


def test_a_request_is_resolved_before_it_waits(catalogue: Catalogue) -> None:
    request = read_request({"prompt": "a hen", "seed": 7, "count": 2, "steps": 3}, catalogue, LIMITS)
    resolved = [(job.seed, job.settings.steps, job.settings.width) for job in request.jobs]
    assert resolved == [(7, 3, 128), (8, 3, 128)] and "a hen" not in repr(request)


def test_a_fresh_seed_is_drawn_when_the_request_comes(catalogue: Catalogue) -> None:
    assert len({read_request({"prompt": "a hen"}, catalogue, LIMITS).jobs[0].seed for _ in range(5)}) == 5


def test_a_folder_is_found_by_its_name(catalogue: Catalogue, models_folder: Path) -> None:
    request = read_request({"prompt": "a hen", "model": "tiny"} | SMALL, catalogue, LIMITS)
    assert request.entry.source == str(models_folder / "tiny") and request.jobs[0].settings.steps == 2
    with pytest.raises(RequestError, match="width 50"):
        read_request({"prompt": "a hen", "model": "tiny"} | SMALL | {"width": 50}, catalogue, LIMITS)
    assert next(iter(catalogue.models())) == "flux-demo" and "no-model" not in catalogue.models()


@pytest.mark.parametrize("name", ["dall-e-3", "gpt-image-1", "gpt-image-1.5-mini", "", None])
def test_names_of_openai_mean_the_servers_own_model(catalogue: Catalogue, name: str | None) -> None:
    assert catalogue.model(name).name == "flux-demo"


@pytest.mark.parametrize(
    "name", ["../models/tiny", "/etc", "~", ".", "no-model", "tiny/", "flux-deno", "black-forest-labs/x"]
)
def test_a_name_is_never_a_path(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(UnknownModelError, match="no model is called"):
        catalogue.model(name)


def test_a_model_that_is_not_here_is_not_downloaded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "is_here", lambda manifest: manifest.bundled is not None)
    catalogue.refresh()
    with pytest.raises(UnknownModelError, match="start the server with --model flux-schnell"):
        catalogue.model("flux-schnell")


def test_loras_by_name(catalogue: Catalogue, tmp_path: Path) -> None:
    request = read_request({"prompt": "x", "lora": [["flux-night", 0.5]]}, catalogue, LIMITS)
    assert [(path.name, scale) for path, scale in request.loras] == [("flux-night.safetensors", 0.5)]
    assert catalogue.loras()["flux-night"].family == "FLUX.1"
    (tmp_path / "styles").mkdir()
    demo = catalogue.loras()["flux-night"].path
    (tmp_path / "styles" / "ink.safetensors").symlink_to(demo)
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    own = Catalogue("flux-demo", loras_folder=tmp_path)
    assert "styles/ink" in own.loras() and "broken" not in own.loras()
    for name in (str(demo), "../flux-night", "night", 3, ["flux-night"], ["flux-night", "x"]):
        with pytest.raises((LoraError, RequestError), match="lora|LoRA"):
            read_request({"prompt": "x", "lora": [name]}, own, LIMITS)


def test_control_pictures_are_sent_and_networks_named(catalogue: Catalogue) -> None:
    entry = {"picture": in_base64(png()), "model": "flux-controlnet-union-pro-2", "strength": 0.5}
    (job,) = read_request({"prompt": "x", "control": [entry]}, catalogue, LIMITS).jobs
    (control,) = job.controls
    assert (control.model, control.strength) == ("flux-controlnet-union-pro-2", 0.5) and control.picture.width > 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": "qwen-image-controlnet-union"}, "goes with Qwen-Image, and flux-demo is another; for this: flux-"),
        ({"model": "flux-controlnet-union"}, "this version knows no commit of InstantX/"),
        ({"model": "flux-controlnet-onion"}, "give one of flux-controlnet-canny"),
        ({}, "name a control network after it"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_before_the_request_waits(
    catalogue: Catalogue, entry: dict[str, str], message: str
) -> None:
    with pytest.raises(ImagegenError, match=message):
        read_request({"prompt": "x", "control": [{"picture": in_base64(png()), **entry}]}, catalogue, LIMITS)


def test_recipes_by_name(catalogue: Catalogue, tmp_path: Path) -> None:
    assert read_request({"prompt": "x", "quant": "q6"}, catalogue, LIMITS).quant == "q6"
    assert read_request({"prompt": "x"}, catalogue, LIMITS, "q8").quant == "q8"
    assert read_request({"prompt": "x", "quant": "none"}, catalogue, LIMITS, "q8").quant is None
    with pytest.raises(QuantizationError, match="give one of"):
        read_request({"prompt": "x", "quant": str(tmp_path / "own.toml")}, catalogue, LIMITS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "x" * 51}, "reads up to 50"),
        ({"prompt": "\ud800"}, "surrogates"),
        ({"prompt": "x", "negative_prompt": "\udfff", "true_cfg": 2.0}, "surrogates"),
        ({"prompt": "x", "count": 4}, "up to 3 pictures"),
        ({"prompt": "x", "seed": [1, 2, 3, 4]}, "up to 3 pictures"),
        ({"prompt": "x", "steps": 21}, "up to 20 steps"),
        ({"prompt": "x", "width": 272, "height": 256}, "up to 65536 pixels"),
        ({"prompt": "x", "steps": "8"}, "steps '8'"),
        ({"prompt": "x", "guidance_scale": 3}, "did you mean guidance"),
        ({"prompt": "x", "resident": True}, "resident: the server decides"),
        ({"prompt": "x", "upsample": True}, "upsample: this server draws prompts as they are"),
        ({"prompt": "x", "enhance_prompt": True}, "enhance_prompt: this server draws prompts as they are"),
        ({"prompt": "x", "noise": [[1.0]]}, "noise"),
        ({"prompt": "x", "references": [in_base64(png())] * 3}, "up to 2"),
        ({"prompt": "x", "image": "/etc/passwd"}, "paths are not read"),
        ({"prompt": "x", "image": in_base64(png(size=(64, 63)))}, "million pixels in all"),
        ({"prompt": "x", "control": "/etc/passwd"}, "paths are not read"),
        ({"prompt": "x", "redux": [["/etc/passwd", 1.0]]}, "paths are not read"),
        (
            {"prompt": "x", "control": [{"picture": in_base64(png()), "model": "/etc"}]},
            "model '?/etc'?: give one of flux-",
        ),
        ({"prompt": "x", "control": [in_base64(png())] * 3}, "up to 2"),
        ({"prompt": "x", "control": [[in_base64(png(size=(64, 63)))]]}, "million pixels in all"),
        ({"prompt": "x", "lora": ["flux-night"] * 3}, "merges up to 2"),
        ({"prompt": "x", "model": 3}, "model 3"),
    ],
)
def test_what_is_wrong_is_said(catalogue: Catalogue, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ImagegenError, match=message):
        read_request(fields, catalogue, LIMITS)


def test_a_mask_is_passed_on(catalogue: Catalogue) -> None:
    fields = {"prompt": "x", "image": in_base64(png()), "mask": in_base64(png("white"))}
    assert "mask_sha256" in read_request(fields, catalogue, LIMITS).jobs[0].record("cfg")


def test_every_parameter_of_the_table_is_taken_or_left_out_for_a_reason() -> None:
    left = {row.name for row in PARAMETERS} - TAKEN.keys()
    assert left == {"on_step", "on_load", "on_download", "noise", "step_noise", "resident", "upsample"}


def test_form_fields_are_read_by_their_parameters_kind() -> None:
    texts = {"steps": "8", "guidance": "2.5", "seed": "7", "n": "2", "prompt": "7", "lora_partial": "True", "shift": ""}
    read = {name: from_text(name, text) for name, text in texts.items()}
    assert read == {
        "steps": 8, "guidance": 2.5, "seed": 7, "n": 2, "prompt": "7", "lora_partial": True, "shift": None,
    }  # fmt: skip
    assert from_text("timesteps", "[900, 500]") == [900, 500] and from_text("lora", "ink") == "ink"
    assert from_text("lora", '[["ink", 0.5]]') == [["ink", 0.5]] and from_text("blend_seams", "adaptive") == "adaptive"
    assert from_text("guidance_until", "0.1-0.8") == "0.1-0.8" and from_text("guidance_until", "0.6") == 0.6
    with pytest.raises(RequestError, match="steps 'many': give a whole number"):
        from_text("steps", "many")
    assert BY_NAME["steps"].kind.description == "a whole number"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "NaN", "[Infinity]", "9" * 30, b"\xff\xfe", "{'a': 1}"])
def test_json_that_is_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(RequestError, match="the body"):
        parse_json(text)


def test_what_fits_is_told_for_each_recipe() -> None:
    found = {fit.quant: fit for fit in fits("flux-demo")}
    assert list(found) == [None, "q8", "q6", "q4"] and all(fit.fits for fit in found.values())
    assert found[None].peak_bytes > 10**7
