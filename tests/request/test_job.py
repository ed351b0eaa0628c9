"""Requests -> jobs: every default from the manifest, every bad parameter refused with a way out."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import ImagegenError, RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.job import Job, resolve, seeds_of
from mlx_imagegen.request.parameters import LARGEST_SEED, PICTURE_FIELDS

DEV, SCHNELL, QWEN = (manifests()[name] for name in ("flux-dev", "flux-schnell", "qwen-image"))
EDIT = manifests()["qwen-image-edit-2509"]
PICTURE = Image.fromarray(np.arange(40 * 24 * 3, dtype=np.uint8).reshape(24, 40, 3))


def one(manifest: Any = DEV, prompt: str = "a fox", **parameters: Any) -> Job:
    (job,) = resolve(manifest, 16, prompt, **({"seed": 1} | parameters))
    return job


def test_defaults_come_from_the_manifest() -> None:
    job = one()
    assert (job.settings.steps, job.settings.width, job.settings.height, job.settings.guidance) == (28, 1024, 1024, 3.5)
    assert job.settings.extras == {"max_sequence_length": 512}
    assert job.negative is None and not job.notes


def test_what_is_given_goes_before() -> None:
    job = one(steps=2, width=64, height=96, guidance=1.5, seed=9, max_sequence_length=40)
    assert (job.settings.steps, job.settings.width, job.settings.height, job.seed) == (2, 64, 96, 9)
    assert (job.settings.guidance, job.settings.extras["max_sequence_length"]) == (1.5, 40)


def test_guidance_means_what_the_model_takes() -> None:
    assert one(QWEN).settings.cfg == 4.0
    assert one(QWEN).negative is not None and one(QWEN).negative.text == " "
    assert one(QWEN, guidance=1).negative is None
    assert one(DEV, true_cfg=2.5, negative_prompt="blurry").negative.text == "blurry"  # type: ignore[union-attr]
    assert one(SCHNELL, guidance=5).settings.guidance == 0
    assert "takes no guidance" in one(SCHNELL, guidance=5).notes[0]
    assert "set true_cfg above 1" in one(DEV, negative_prompt="blurry").notes[0]
    assert "set guidance above 1" in one(QWEN, guidance=1, negative_prompt="blurry").notes[0]


def test_prompts_with_seeds_prompts_outermost() -> None:
    jobs = resolve(DEV, 16, ["a", "b"], seed=[5, 6])
    assert [(job.prompt.text, job.seed) for job in jobs] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]


def test_seeds_and_counts() -> None:
    assert seeds_of(5, 3) == [5, 6, 7]
    assert seeds_of([3, 1], None) == [3, 1]
    assert seeds_of(np.arange(2), None) == [0, 1] and seeds_of(np.int64(4), None) == [4]  # type: ignore[arg-type]
    drawn = seeds_of(None, 2)
    assert seeds_of(156680208700286, None) == [156680208700286], "ComfyUI's seeds are as long"
    assert drawn[1] == drawn[0] + 1 and seeds_of(None, None) != seeds_of(None, None)


def test_a_picture_gives_the_size_and_says_so() -> None:
    job = one(image=PICTURE)
    assert (job.settings.width, job.settings.height) == (32, 16)
    assert job.notes == ("the input picture is 40x24; it is resized to 32x16",)
    assert job.strength == 0.6
    larger = one(image=PICTURE, width=64, height=64)
    assert larger.settings.width == 64 and larger.notes == ("the input picture is 40x24; it is resized to 64x64",)


def test_a_resized_picture_of_which_a_part_is_kept_says_how_to_keep_its_pixels() -> None:
    words = ", what is kept of it as well; give padding to keep its own pixels and size"
    for part in ({"mask_box": (0, 0, 9, 9)}, {"expand": "left=4"}):
        (note,) = (note for note in one(image=PICTURE, **part).notes if "resized" in note)
        assert note.endswith(words)
        assert not any("resized" in note for note in one(image=PICTURE, padding=8, **part).notes)


def test_a_photo_is_brought_down_to_the_model_s_usual_number_of_pixels() -> None:
    job = one(image=Image.new("RGB", (4032, 3024)))
    assert (job.settings.width, job.settings.height) == (1184, 880)
    assert job.notes == ("the input picture is 4032x3024; it is resized to 1184x880",)
    asked = one(image=Image.new("RGB", (4032, 3024)), width=2048, height=1536)
    assert (asked.settings.width, asked.settings.height) == (2048, 1536)


def test_numbers_of_numpys_are_numbers() -> None:
    job = resolve(
        DEV, 16, "a fox", np.int64(3), np.int64(1), width=np.int64(64), steps=np.int32(4), guidance=np.float32(2.5)
    )[0]
    record = json.loads(json.dumps(job.record("embedded")))
    assert (record["width"], record["steps"], record["guidance"], record["seed"]) == (64, 4, 2.5, 3)


def test_no_references_are_none() -> None:
    assert one(references=None).prompt.references == ()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an empty prompt": ({"prompt": " \n"}, "the prompt is empty"),
    "no prompt": ({"prompt": []}, "no prompt is given"),
    "a prompt that is none": ({"prompt": [3]}, "prompt 3: give text"),
    "a preview that is no text": ({"preview": 1}, r"preview 1: give text \(what"),
    "a prompt of bytes": ({"prompt": b"a fox"}, "prompt b'a fox': give text"),
    "a prompt with a name": ({"prompt": {"prompt": "a fox"}}, "prompt {'prompt': 'a fox'}: give text"),
    "a prompt that is no list": ({"prompt": 5}, "prompt 5: give text"),
    "no steps": ({"steps": 0}, "steps 0: give a whole number from 1"),
    "half a step": ({"steps": 1.5}, "steps 1.5"),
    "too many steps": ({"steps": 1001}, "steps 1001"),
    "a width between": ({"width": 100}, "width 100: flux-dev needs a multiple of 16 pixels, for example 96"),
    "no width": ({"width": 0}, "width 0: .*for example 1024"),
    "a negative height": ({"height": -64}, "height -64"),
    "a height of another kind": ({"height": "64"}, "height '64'"),
    "a list for a width": ({"width": [64]}, r"width \[64\]: give a whole number"),
    "steps that are a switch": ({"steps": True}, "steps True: give a whole number"),
    "a width of 400 digits": ({"width": 10**400}, r"width 10+\.\.\.0+: give a whole number"),
    "a huge width": ({"width": 8208}, "width 8208: pictures may be up to 8192"),
    "a huge picture": ({"width": 8192, "height": 2064}, "8192x2064: pictures may have up to 16.8 million pixels"),
    "a strength of nothing": ({"image": PICTURE, "strength": 0}, "strength 0: give a number above 0"),
    "a strength above all": ({"image": PICTURE, "strength": 1.1}, "strength 1.1"),
    "a strength that is none": ({"image": PICTURE, "strength": float("nan")}, "strength nan"),
    "a strength of no picture": ({"strength": 0.5}, "no image is given"),
    "guidance below zero": ({"guidance": -1}, "guidance -1"),
    "guidance that is none": ({"guidance": float("inf")}, "guidance inf"),
    "a negative seed": ({"seed": -1}, "seed -1"),
    "a seed beyond torch's": ({"seed": LARGEST_SEED + 1}, f"seed {LARGEST_SEED + 1}"),
    "a seed that is none": ({"seed": True}, "seed True"),
    "seeds that are none": ({"seed": "5"}, "seed '5'"),
    "half a seed": ({"seed": 1.5}, "seed 1.5"),
    "no seeds": ({"seed": []}, "seed: the list is empty"),
    "a width that is no number": ({"width": float("nan")}, "width nan"),
    "a strength in words": ({"image": PICTURE, "strength": "half"}, "strength 'half': give a number"),
    "guidance in words": ({"guidance": "high"}, "guidance 'high': give a number"),
    "guidance that is a switch": ({"guidance": True}, "guidance True: give a number"),
    "half a token": ({"max_sequence_length": 1.5}, "max_sequence_length 1.5: give a whole number"),
    "a negative prompt that is none": ({"negative_prompt": 5, "true_cfg": 4}, "negative_prompt 5: give text"),
    "timesteps that are none": ({"timesteps": 5}, "timesteps 5: give a list"),
    "an aspect that is none": ({"aspect": [1]}, r"aspect \[1\]: give width:height"),
    "an image that is none": ({"image": 5}, "image is of the kind int: give a file's path"),
    "a reference that is none": ({"references": 5}, "references: flux-dev takes none"),
    "half a picture": ({"count": 1.5}, "count 1.5"),
    "no pictures": ({"count": 0}, "count 0"),
    "seeds and a count": ({"seed": [1, 2], "count": 2}, "several seeds or a count, not both"),
    "no tokens": ({"max_sequence_length": 0}, "max_sequence_length 0"),
    "more tokens than are read": ({"max_sequence_length": 513}, "reads 1 to 512"),
    "references that are not read": ({"references": [PICTURE]}, "flux-dev takes none"),
    "a picture that is none": ({"image": np.zeros((4, 4))}, "image: an array must have the shape"),
    "an unknown parameter": ({"step": 4}, "no parameter 'step'; did you mean steps"),
    "a parameter of another library": (
        {"callback": print},
        "no parameter 'callback'; known: prompt, seed, count, on_s",
    ),
    "what a model is opened with": ({"quant": "q4"}, "no parameter 'quant'; known: .* and what load.. takes"),
    "a part of a record that is no parameter": ({"manifest": "flux-dev"}, "no parameter 'manifest'"),
    "noise that is a path": ({"noise": "a.npy"}, "noise: give arrays of unit normals"),
    "a count beyond the last seed": ({"seed": LARGEST_SEED, "count": 2}, "seed 18446744073709551616: give a whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_parameters_are_refused_with_a_way_out(case: str) -> None:
    parameters, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as caught:
        resolve(DEV, 16, **({"prompt": "a fox", "seed": 1} | parameters))
    assert isinstance(caught.value, ImagegenError | ValueError)
    assert len(str(caught.value)) > 20, "what, why and how to fix"


def test_true_cfg_is_another_model_s_word() -> None:
    with pytest.raises(RequestError, match="use guidance"):
        one(QWEN, true_cfg=3)


@pytest.mark.parametrize(
    ("manifest", "parameters"),
    [
        (DEV, {}),
        (DEV, {"true_cfg": 2.5, "negative_prompt": "blurry", "guidance": 2, "max_sequence_length": 77}),
        (SCHNELL, {"steps": 3}),
        (QWEN, {"guidance": 3, "negative_prompt": "ugly"}),
        (QWEN, {"guidance": 1}),
        (manifests()["qwen-image-lightning"], {"steps": 4}),
        (manifests()["hidream-o1"], {"guidance": 2, "shift": 2.0}),
        (manifests()["hidream-o1-dev"], {}),
        (DEV, {"image": PICTURE, "strength": 0.3}),
        (EDIT, {"references": (PICTURE, PICTURE)}),
    ],
)
def test_a_record_makes_the_same_job_again(manifest: Any, parameters: dict[str, Any]) -> None:
    job = one(manifest, **parameters)
    record = job.record(manifest.guidance)
    given = {name: value for name, value in record.items() if name in (*PICTURE_FIELDS, "seed", "prompt")}
    kept_elsewhere = {name: parameters[name] for name in ("image", "references") if name in parameters}
    again = one(manifest, **(given | kept_elsewhere))
    assert again.record(manifest.guidance) == record
    assert (again.settings, again.strength) == (job.settings, job.strength)


def test_seeds_that_change_nothing_are_told() -> None:
    noise = np.zeros((1, 16, 4, 4), np.float32)
    note = "the noise is given, so that the pictures of all 2 seeds are equal; leave it out, or give one seed"
    assert resolve(DEV, 16, "a fox", [1, 2], noise=noise)[1].notes == (note,)
    assert resolve(DEV, 16, "a fox", 1, noise=noise)[0].notes == ()
    assert resolve(DEV, 16, "a fox", [1, 2])[0].notes == ()
    # The autoencoder's sample of a picture to start from is drawn from the seed, and so is the flash sampler's noise.
    assert note not in resolve(DEV, 16, "a fox", [1, 2], noise=noise, image=PICTURE)[0].notes
    distilled = manifests()["hidream-o1-dev"]
    assert note not in resolve(distilled, 32, "a fox", [1, 2], noise=noise)[0].notes
    step_noise = [noise] * 28
    assert note in resolve(distilled, 32, "a fox", [1, 2], noise=noise, step_noise=step_noise)[0].notes


def test_records_tell_given_pictures_and_noise_apart() -> None:
    noise = np.zeros((1, 16, 4, 4), np.float32)
    first, second = (one(image=PICTURE, noise=noise + offset).record("embedded") for offset in (0, 1))
    assert first["image_sha256"] == second["image_sha256"]
    assert first["noise_sha256"] != second["noise_sha256"]
