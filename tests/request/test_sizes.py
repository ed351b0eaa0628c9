"""The size of a picture: presets and shapes, refusals and notes."""

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.request.job import Job, resolve
from tests.draw import drawn_data

FULL = manifests()["hidream-o1"]
PICTURE = Image.new("RGB", (100, 80))


def one(manifest: Any = FULL, **parameters: Any) -> Job:
    (job,) = resolve(manifest, 32, "a fox", 1, **parameters)
    return job


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        ("16:9", (2560, 1440)),
        ("9:16", (1440, 2560)),
        ("1:1", (2048, 2048)),
        ("2.35:1", (3104, 1312)),
        ("0.75", (1728, 2304)),
    ],
)
def test_aspect(aspect: str, size: tuple[int, int]) -> None:
    settings = one(aspect=aspect).settings
    assert (settings.width, settings.height) == size


def test_aspect_without_presets_keeps_the_area() -> None:
    settings = one(replace(manifests()["flux-dev"]), aspect="16:9").settings
    assert settings.width % 32 == settings.height % 32 == 0
    assert (
        abs(settings.width * settings.height / 1024**2 - 1) < 0.05
        and abs(settings.width / settings.height - 16 / 9) < 0.1
    )


@pytest.mark.parametrize("name", [name for name, manifest in manifests().items() if manifest.folder])
def test_a_demo_says_that_it_draws_its_own_size_alone(name: str) -> None:
    asked = {side: resolve(manifests()[name], 16, "a red circle", 1, width=side, height=side) for side in (128, 256)}
    smaller, larger = ([note for note in job.notes if "makes well" in note] for (job,) in asked.values())
    assert not smaller and larger[0].startswith(f"256x256 is larger than what {name} makes well (12,000 to 20,000")


def test_sizes_off_the_trained_ones_are_told_not_refused() -> None:
    (note,) = one(width=512, height=512).notes
    assert note.startswith("512x512 is smaller than what hidream-o1 makes well (900,000 to 4,300,000 pixels in all)")
    assert any("larger" in note for note in one(width=4096, height=2048).notes)
    assert not any("maller" in note or "arger" in note for note in one(width=1024, height=1024).notes + one().notes)


def test_small_models_make_small_pictures() -> None:
    """A folder trained for tests says so in its config.json; 256 pixels are the published models' limit."""
    small = recognize(drawn_data() / "hidream_o1")
    assert one(small, width=32, height=32).settings.width == 32
    assert one(width=256, height=256).settings.width == 256
    assert one(manifests()["hidream-demo"], width=64, height=32).settings.width == 64


BAD = [
    ({"width": 1000}, "multiple of 32"),
    ({"width": 224}, "width 224: hidream-o1 needs a multiple of 32 pixels from 256 up, for example 256"),
    ({"height": 0}, "height 0: .* from 256 up, for example 2048"),
    ({"keep_original_aspect": True}, "one reference"),
    ({"keep_original_aspect": True, "references": [PICTURE], "width": 512}, "more than once"),
    ({"aspect": "16:9", "width": 512}, "more than once"),
    ({"aspect": "wide"}, "16:9"),
    ({"aspect": "100:1"}, "16:1"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD, ids=[message for _, message in BAD])
def test_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        one(**parameters)
