"""Pictures that cannot be used as they are given: one line, exit code 2, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.preflight import resolve_before_opening

WAYS = {
    "a mask without a picture": (("--mask", "white.png"), "no image is given"),
    "a mask of another shape": (("--image", "photo.png", "--mask", "tall.png"), "it has another shape"),
    "nothing white": (("--image", "photo.png", "--mask", "black.png"), "the mask has nothing white"),
    "margins beyond the limit": (("--image", "photo.png", "--expand", "left=99999"), "pictures may be up to"),
    "control without a network": (("--control", "photo.png"), "takes no control pictures by itself"),
    "another family's network": (
        ("--control", "photo.png,qwen-image-controlnet-union"),
        "qwen-image-controlnet-union goes with Qwen-Image",
    ),
    "an adapter as a network": (("--control", "photo.png,flux-redux-dev"), "neither a folder nor a control network"),
    "redux with true CFG": (("--redux", "photo.png", "--true-cfg", "3"), "a negative prompt has none"),
    "a network as an adapter": (("--redux", "photo.png:1:flux-controlnet-union"), "nor an image adapter's name"),
    "a scale that is none": (("--redux", "photo.png:much"), "redux: scale 'much': give a number from 0 to 10"),
    "an unreadable picture": (("--image", "text.png"), "cannot be read as a picture"),
    "an unreadable mask": (("--image", "photo.png", "--mask", "text.png"), "cannot be read as a picture"),
    "an unreadable control": (("--control", "text.png"), "cannot be read as a picture"),
    "an unreadable prompt": (("--redux", "text.png:0.5"), "cannot be read as a picture"),
    "a picture that is not there": (("--redux", "gone.png"), "gone.png is not there"),
}


@pytest.mark.parametrize("way", WAYS)
def test_refused_in_one_line(way: str, cli: Callable[..., Ran], flux_folder: Path) -> None:
    Image.new("RGB", (48, 32), "red").save("photo.png")
    Image.new("L", (32, 48), 255).save("tall.png")
    Image.new("L", (48, 32), 255).save("white.png")
    Image.new("L", (48, 32)).save("black.png")
    Path("text.png").write_text("no picture")
    flags, words = WAYS[way]
    before = sorted(Path().iterdir())
    ran = cli("generate", "a fox", "--model", flux_folder, *flags, "--seed", 1, "-o", "made.png")
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1 and not ran.out
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("model", "flag", "value", "words"),
    [
        ("flux-dev", "--control", "photo.png,nosuch", "neither a folder nor a control network's name"),
        ("flux-dev", "--control", "photo.png,flux-controlnet-union", "knows no commit of InstantX/FLUX.1-dev-Control"),
        ("flux-dev", "--control", "photo.png", "name a control network after it"),
        ("z-image", "--control", "photo.png", "z-image takes no control pictures. Models that do: flux-canny-dev"),
        ("flux-dev", "--redux", "photo.png:1:nosuch", "image_encoder, image_embedder and feature_extractor"),
        ("flux-dev", "--ip-adapter", "photo.png:1:flux-ip-adapter-instantx", "no commit of InstantX/FLUX.1-dev-IP-Ada"),
    ],
)
def test_what_cannot_be_had_is_refused_before_the_model_is_downloaded(
    model: str, flag: str, value: str, words: str, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**options: Any) -> None:
        raise AssertionError("the model is opened, and 34 GB are downloaded for nothing")

    monkeypatch.setattr("mlx_imagegen.pipeline.load", load)
    Image.new("RGB", (48, 32), "red").save("photo.png")
    ran = cli("generate", "a fox", "--model", model, flag, value, "-o", "made.png")
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1


def test_a_lora_may_be_what_follows_a_picture() -> None:
    photo = Image.new("RGB", (48, 32), "red")
    (job,) = resolve_before_opening(manifests()["flux-dev"], ["depth.safetensors"], "a fox", 1, control=photo)
    assert [control.model for control in job.controls] == [None]
