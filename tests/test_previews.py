"""Previews by linear factors: their numbers, what models make of them, and when the decoder is used."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.pipeline import load
from mlx_imagegen.previews import LatentColours, latent_colours
from mlx_imagegen.request.job import resolve
from mlx_imagegen.result import StepEvent
from tests.draw import drawn_data
from tests.test_threads import in_a_thread

PROMPT = "a green circle on a white background"
SMALL: dict[str, Any] = {"width": 64, "height": 96, "steps": 4, "seed": 5}


def test_factors_and_bias_as_published() -> None:
    """One pixel by hand: rgb = latents @ factors + bias in -1..1."""
    colours = LatentColours(np.array([[0.5, 0.0, -0.5], [0.0, 0.25, 1.0]]), np.array([0.0, 0.5, -0.25]))
    latents = np.array([1.0, -2.0])[:, None, None] * np.ones((2, 2, 3))
    shown = np.asarray(colours.picture(latents, (24, 16)))
    want = ((np.array([0.5, 0.0, -2.75]) + 1) / 2).clip(0, 1) * 255
    assert shown.shape == (16, 24, 3) and (shown == want.round()).all()


def test_every_published_model_with_latents_names_factors() -> None:
    names = {name: manifest.extras.get("latent_rgb") for name, manifest in manifests().items()}
    assert names["flux-dev"] == names["z-image-turbo"] == "flux" and names["qwen-image-edit"] == "wan21"
    assert names["flux2-dev"] == names["flux2-klein-9b-kv"] == names["flux3-klein-base"] == "flux2"
    assert names["hidream-o1"] is None
    cells = latent_colours(manifests()["flux3-klein"], 32)
    assert cells is not None and np.allclose(cells.factors[3], [0.2144, 0.3009, 0.3652])
    flux = latent_colours(manifests()["flux-dev"], 16)
    assert flux is not None and np.allclose(flux.factors[0], [-0.0346, 0.0244, 0.0681])
    assert np.allclose(flux.bias, [-0.0329, -0.0718, -0.0851])
    assert latent_colours(manifests()["flux-dev"], 4) is None, "latents of another kind"


@pytest.mark.parametrize(("model", "correlation"), [("flux-demo", 0.75), ("qwen-demo", 0.6)])
def test_a_fast_preview_is_like_the_picture_and_needs_no_decoder(
    model: str, correlation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, events = load(model), list[StepEvent]()
    want = np.asarray(pipeline.generate(PROMPT, on_step=events.append, **SMALL).image).astype(float)
    monkeypatch.setattr(type(pipeline.family), "decode", lambda *_: pytest.fail("the preview was decoded"))
    shown = in_a_thread(events[-1].preview)
    assert isinstance(shown, Image.Image) and shown.size == (64, 96)
    assert np.corrcoef(np.asarray(shown).ravel(), want.ravel())[0, 1] > correlation


@pytest.mark.parametrize("model", ["flux2/klein", "flux2/dev", "flux3/klein"])
def test_models_of_cells_show_the_latents_in_them(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's values are (channel, row, column): 2 x 2 latents, which the decoder is given in the same order."""
    pipeline, events = load(drawn_data() / model), list[StepEvent]()
    colours = LatentColours(np.random.default_rng(1).normal(0, 0.3, (4, 3)), np.array([-0.1, 0.0, 0.1]))
    monkeypatch.setattr("mlx_imagegen.pipeline.latent_colours", lambda _, channels: colours if channels == 4 else None)
    decode, seen = type(pipeline.family).decode, list[mx.array]()
    monkeypatch.setattr(
        type(pipeline.family), "decode", lambda self, x, *rest: seen.append(x) or decode(self, x, *rest)
    )
    options = {"seed": 1, "steps": 1, "width": 48, "height": 64, "max_sequence_length": 96}
    pipeline.generate("a fox", on_step=events.append, **options)
    (x,) = seen  # of the only step: the denoised picture is the last x
    shown = np.asarray(events[-1].preview())
    assert len(seen) == 1, "the preview was decoded"
    cells = np.array(x[0]).reshape(4, 3, 4, 2, 2)  # rows, columns of cells; channels; rows, columns in a cell
    latents = cells.transpose(2, 0, 3, 1, 4).reshape(4, 8, 6)
    assert np.array_equal(shown, np.asarray(colours.picture(latents, (48, 64)))) and shown.std() > 10


@pytest.mark.parametrize("model", ["flux-demo", "qwen-demo"])
def test_a_full_preview_is_decoded(model: str) -> None:
    pipeline, events = load(model), list[StepEvent]()
    result = pipeline.generate(PROMPT, on_step=events.append, preview="full", **SMALL)
    assert (np.asarray(events[-1].preview()) == np.asarray(result.image)).all()
    assert "preview" not in result.record


def test_a_model_of_pixels_shows_them() -> None:
    pipeline, events = load("hidream-demo"), list[StepEvent]()
    result = pipeline.generate(PROMPT, on_step=events.append, **SMALL)
    assert (np.asarray(events[-1].preview()) == np.asarray(result.image)).all()


@pytest.mark.parametrize("model", ["flux-demo", "qwen-demo"])
def test_unpacking_undoes_packing(model: str) -> None:
    family = load(model).family
    settings = resolve(manifests()[model], 16, "a fox", 1, width=64, height=96)[0].settings
    x = mx.random.normal(family.shape(settings), key=mx.random.key(1))
    unpacked = family.unpack(family.pack(x), settings)
    assert unpacked is not None and mx.array_equal(unpacked, x)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(RequestError, match="preview 'quick': give fast, tiny or full"):
        resolve(manifests()["flux-demo"], 16, "a fox", 1, preview="quick")
