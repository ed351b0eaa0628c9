"""A1111's API, asked as Open WebUI and SillyTavern do: the requests are shaped as their sources send them."""

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from mlx_imagegen.serving.a1111_fields import read_fields
from mlx_imagegen.serving.catalogue import Catalogue

from .conftest import LiveServer, in_base64, opened, png, same

OPEN_WEBUI = {"authorization": f"Basic {base64.b64encode(b'user:secret').decode()}", "content-type": "application/json"}
# What SillyTavern's form has, whatever the model; the sizes aside.
SILLYTAVERN = {
    "url": "http://127.0.0.1:7860", "auth": "", "prompt": "a hen", "negative_prompt": "lowres, bad anatomy",
    "sampler_name": "DPM++ 2M Karras", "scheduler": "Automatic", "steps": 2, "cfg_scale": 7, "width": 48, "height": 32,
    "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": [],
    "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 3,
    "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
    "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
    "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip


def test_open_webui_draws(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    """Its sequence: the options, another model, the models, and a picture; what it reads is `images` and `info`."""
    status, options = live.call("GET", "/sdapi/v1/options", headers=OPEN_WEBUI)
    assert status == 200 and options["sd_model_checkpoint"] == "tiny"
    models = live.call("GET", "/sdapi/v1/sd-models", headers=OPEN_WEBUI)[1]
    assert {"title": "tiny", "model_name": "tiny"}.items() <= models[0].items()
    assert live.call("POST", "/sdapi/v1/options", options | {"sd_model_checkpoint": "flux-demo"}, OPEN_WEBUI)[0] == 200
    assert live.call("GET", "/sdapi/v1/options", headers=OPEN_WEBUI)[1]["sd_model_checkpoint"] == "flux-demo"
    assert live.call("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "tiny"}, OPEN_WEBUI)[0] == 200
    data = {"prompt": "a hen", "batch_size": 2, "width": 48, "height": 32, "steps": 2, "seed": 3}
    status, answer = live.call("POST", "/sdapi/v1/txt2img", data, OPEN_WEBUI)
    assert status == 200 and same(opened(answer["images"][0]), drawn("a hen", seed=3))
    assert same(opened(answer["images"][1]), drawn("a hen", seed=4))
    assert json.loads(answer["info"])["all_seeds"] == [3, 4]


def test_sillytavern_draws(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    named = ("samplers", "schedulers", "upscalers", "latent-upscale-modes", "loras")
    for path, key in [*((path, "name") for path in named), ("sd-vae", "model_name"), ("sd-models", "title")]:
        status, rows = live.call("GET", f"/sdapi/v1/{path}")
        assert status == 200 and all(isinstance(row[key], str) for row in rows), path
    status, answer = live.call("POST", "/sdapi/v1/txt2img", SILLYTAVERN)
    assert status == 200 and same(opened(answer["images"][0]), drawn("a hen", seed=3, guidance=7))
    info = json.loads(answer["info"])
    assert any("negative_prompt has no effect" in note for note in info["notes"])
    assert any("'DPM++ 2M Karras' has no effect" in note for note in info["notes"])
    assert "Steps: 2, Sampler: Euler, CFG scale: 0.0, Seed: 3, Size: 48x32" in info["infotexts"][0]


def test_a_picture_is_changed(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    body = {"prompt": "a hen", "init_images": [f"data:image/png;base64,{in_base64(png())}"], "seed": 3, "steps": 2}
    status, answer = live.call("POST", "/sdapi/v1/img2img", body | {"denoising_strength": 0.9})
    expected = drawn("a hen", seed=3, image=Image.new("RGB", (48, 32), "teal"), strength=0.9)
    assert status == 200 and same(opened(answer["images"][0]), expected)
    assert "init_images" not in answer["parameters"]
    status, answer = live.call("POST", "/sdapi/v1/img2img", body | {"mask": in_base64(png("white"))})
    assert status == 200
    assert live.call("POST", "/sdapi/v1/img2img", {"prompt": "a hen"})[0] == 400


def test_progress_and_interrupt(live: LiveServer) -> None:
    idle = live.call("GET", "/sdapi/v1/progress")[1]
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0 and idle["current_image"] is None
    answers: list[Any] = []
    body = SILLYTAVERN | {"steps": 200, "n_iter": 3}
    thread = threading.Thread(target=lambda: answers.append(live.call("POST", "/sdapi/v1/txt2img", body)))
    thread.start()
    seen: dict[str, Any] = {}
    ends_at = time.monotonic() + 10
    while not seen.get("current_image") and time.monotonic() < ends_at:
        time.sleep(0.02)
        seen = live.call("GET", "/sdapi/v1/progress?skip_current_image=false")[1]
    assert 0 < seen["progress"] < 1 and seen["eta_relative"] > 0 and seen["state"]["job_count"] == 3
    assert seen["state"]["sampling_steps"] == 200 and opened(seen["current_image"]).size == (48, 32)
    assert live.call("GET", "/sdapi/v1/progress?skip_current_image=true")[1]["current_image"] is None
    assert live.call("POST", "/sdapi/v1/interrupt", {})[0] == 200
    thread.join(5)
    status, answer = answers[0]
    assert status == 200 and len(answer["images"]) < 3 and json.loads(answer["info"])["interrupted"]


def test_loras_stand_in_the_prompt() -> None:
    catalogue = Catalogue("flux-demo")
    fields, _ = read_fields({"prompt": "a hen <lora:flux-night:0.5>, a pond<lora:other>"}, None, catalogue)
    assert fields["prompt"] == "a hen , a pond" and fields["lora"] == [["flux-night", 0.5], ["other", 1.0]]


def test_guidance_is_what_the_model_has_use_for() -> None:
    catalogue, body = Catalogue("flux-demo"), {"prompt": "a hen", "cfg_scale": 7, "negative_prompt": "text"}
    taken = {
        name: {key: value for key, value in read_fields(body, name, catalogue)[0].items() if key in body}
        for name in ("flux-demo", "qwen-demo", "qwen-demo-lightning", "hidream-demo")
    }
    assert taken["flux-demo"] == {"prompt": "a hen"} and taken["qwen-demo-lightning"] == {"prompt": "a hen"}
    fields, notes = read_fields(body, "qwen-demo", catalogue)
    assert (fields["guidance"], fields["negative_prompt"], notes) == (7, "text", [])
    fields, notes = read_fields(body | {"sampler_name": "unipc"}, "hidream-demo", catalogue)
    assert "guidance" not in fields and fields["sampler"] == "unipc" and len(notes) == 2


def test_a_mask_is_white_where_the_picture_changes() -> None:
    body = {"prompt": "a hen", "init_images": [in_base64(png())], "mask": in_base64(png("white"))}
    for inverted, level in ((0, 255), (1, 0)):
        fields, _ = read_fields(body | {"inpainting_mask_invert": inverted}, None, Catalogue("flux-demo"))
        assert fields["mask"].getextrema() == (level, level) and fields["strength"] == 0.75


def test_what_cannot_be_done_is_refused(live: LiveServer) -> None:
    for change, message in (
        ({"enable_hr": True}, "second pass"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 9, "n_iter": 9}, "up to 10 pictures"),
        ({"override_settings": {"sd_model_checkpoint": "nothing"}}, "no model is called"),
        ({"prompt": "<lora:none>"}, "no LoRA is called"),
    ):
        status, answer = live.call("POST", "/sdapi/v1/txt2img", SILLYTAVERN | change)
        assert status in (400, 404) and message in answer["detail"], answer
    assert live.call("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "nothing"})[0] == 404
