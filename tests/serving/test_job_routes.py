"""Our own interface: jobs, their events, pictures, models, and turns between clients."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from PIL import Image

from mlx_imagegen.serving.worker import Drawing

from .conftest import LONG, SMALL, LiveServer, in_base64, opened, png, same


def events(live: LiveServer, id: str) -> Iterator[tuple[str, Any]]:
    """As they come."""
    with live.request("GET", f"/jobs/{id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            name = value if field == "event" else name
            if field == "data":
                yield name, json.loads(value)


def test_a_job_from_its_start_to_its_picture(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    status, job = live.call("POST", "/jobs", {"prompt": "a hen", "seed": 3, "count": 2} | SMALL)
    assert status == 202 and job["state"] in ("queued", "preparing") and job["prompt"] == "a hen"
    done = live.finished(job["id"])
    assert done["state"] == "done" and done["progress"] == 1 and [each["seed"] for each in done["results"]] == [3, 4]
    picture = live.picture(done["results"][1]["url"])
    assert same(picture, drawn("a hen", seed=4))
    assert done["results"][0]["command"].startswith("mlx-imagegen generate 'a hen' --seed 3 --steps 2")
    listed = live.call("GET", "/jobs")[1]["jobs"]
    assert listed[0]["id"] == job["id"] and "prompt" not in listed[0]


def test_layers_are_pictures_of_their_own(live: LiveServer) -> None:
    id = live.call("POST", "/jobs", {"prompt": "a hen", "seed": 3} | SMALL)[1]["id"]
    assert live.finished(id)["results"][0]["layer_urls"] == []
    job, layers = live.service.store.get(id), [Image.new("RGBA", (8, 8), (0, 0, 255, alpha)) for alpha in (255, 9)]
    assert job is not None
    before, job.results[0] = job.nbytes, replace(job.results[0], layers=tuple(layers))
    assert job.nbytes > before
    urls = live.finished(id)["results"][0]["layer_urls"]
    assert [live.picture(url).getpixel((0, 0)) for url in urls] == [(0, 0, 255, 255), (0, 0, 255, 9)]
    assert live.call("GET", urls[0].replace("layer1", "layer3"))[0] == 404


def test_events_tell_steps_previews_and_the_end(live: LiveServer) -> None:
    job = live.call("POST", "/jobs", {"prompt": "a hen", "seed": 3} | SMALL | {"steps": 60})[1]
    seen = list(events(live, job["id"]))
    names = [name for name, _ in seen]
    assert names[0] == "progress" and names[-1] == "done" and names.count("preview") >= 1
    steps = [data["step"] for name, data in seen if name == "progress"]
    assert steps == sorted(steps) and steps[-1] > 2
    assert any(data["seconds_left"] for name, data in seen if name == "progress")
    shown = next(data for name, data in seen if name == "preview")["image"]
    assert opened(shown.partition(",")[2]).format == "JPEG"
    assert seen[-1][1]["results"][0]["seed"] == 3


def test_progress_is_told_while_another_picture_is_drawn(live: LiveServer) -> None:
    """benchmarks/serving.py measures how soon."""
    running = live.call("POST", "/jobs", {"prompt": "a hen"} | LONG)[1]
    job = live.call("POST", "/jobs", {"prompt": "a hen"} | SMALL)[1]
    name, first = next(events(live, job["id"]))
    assert name == "progress" and first["state"] == "queued" and first["position"] == 1
    assert live.call("GET", f"/jobs/{running['id']}")[1]["state"] in ("preparing", "drawing")
    for each in (job, running):
        live.call("DELETE", f"/jobs/{each['id']}")
    assert live.finished(running["id"])["state"] == "cancelled"


def test_clients_take_turns(live: LiveServer) -> None:
    blocker = live.call("POST", "/jobs", {"prompt": "a hen"} | LONG)[1]
    time.sleep(0.1)
    started = {}
    for client, prompts in {"ann": ["a1", "a2", "a3"], "bob": ["b1", "b2"]}.items():
        for prompt in prompts:
            job = live.call("POST", "/jobs", {"prompt": prompt} | SMALL, {"X-Client-Id": client})[1]
            started[job["id"]] = prompt
    positions = [live.call("GET", f"/jobs/{id}")[1]["position"] for id in started]
    assert positions == [1, 3, 5, 2, 4]
    live.call("DELETE", f"/jobs/{blocker['id']}")
    ended = {live.finished(id)["started"]: prompt for id, prompt in started.items()}
    assert [ended[at] for at in sorted(ended)] == ["a1", "b1", "a2", "b2", "a3"]


def test_a_waiting_job_is_cancelled_at_once(live: LiveServer) -> None:
    running = live.call("POST", "/jobs", {"prompt": "a hen"} | LONG)[1]
    waiting = live.call("POST", "/jobs", {"prompt": "a hen"} | LONG)[1]
    assert live.call("DELETE", f"/jobs/{waiting['id']}")[1]["state"] == "cancelled"
    started = time.monotonic()
    live.call("DELETE", f"/jobs/{running['id']}")
    assert live.finished(running["id"])["state"] == "cancelled" and time.monotonic() - started < 2
    assert live.call("GET", "/jobs/nothing")[0] == 404


def test_the_model_changes_by_request(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    from mlx_imagegen import generate

    fields = {"prompt": "a large red circle on a white background", "seed": 5, "model": "flux-demo", "steps": 1}
    job = live.finished(live.call("POST", "/jobs", fields | {"lora": [["flux-night", 0.5]]})[1]["id"])
    assert live.service.worker.model.name == "flux-demo"
    lora = str(live.service.catalogue.lora("flux-night").path)
    expected = generate(fields["prompt"], seed=5, steps=1, lora=[(lora, 0.5)])
    assert same(live.picture(job["results"][0]["url"]), expected.image)
    assert job["results"][0]["record"]["lora"] == [["flux-night", 0.5]]
    plain = live.finished(live.call("POST", "/jobs", fields)[1]["id"])
    assert "lora" not in plain["results"][0]["record"]
    back = live.finished(live.call("POST", "/jobs", {"prompt": "a hen", "seed": 3} | SMALL)[1]["id"])
    assert same(live.picture(back["results"][0]["url"]), drawn("a hen", seed=3))


def test_a_job_that_is_cancelled_while_its_model_is_read_stops_no_other(live: LiveServer, monkeypatch: Any) -> None:
    read = Drawing.on_load
    first: list[Drawing] = []

    def cancel_first(drawing: Drawing, *progress: Any) -> None:
        first.append(drawing)
        if drawing is first[0]:
            drawing.job.cancel_requested.set()
        read(drawing, *progress)

    monkeypatch.setattr(Drawing, "on_load", cancel_first)
    ids = [live.call("POST", "/jobs", {"prompt": "a star", "model": "hidream-demo", "steps": 1})[1]["id"] for _ in "12"]
    assert [live.finished(id)["state"] for id in ids] == ["cancelled", "done"]


def test_a_finished_job_keeps_no_picture_that_was_sent(live: LiveServer) -> None:
    fields = {"prompt": "a hen", "image": f"data:image/png;base64,{in_base64(png())}", "steps": 2}
    job = live.service.store.get(live.finished(live.call("POST", "/jobs", fields)[1]["id"])["id"])
    assert job is not None and job.state == "done" and job.request.jobs == [] and job.preview is None


def test_what_cannot_fit_is_refused_before_the_model_leaves(
    live: LiveServer, no_other_model: None, monkeypatch: Any
) -> None:
    live.finished(live.call("POST", "/jobs", {"prompt": "a hen"} | SMALL)[1]["id"])
    opened_before = live.service.worker.model.pipeline
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 10**6)
    job = live.call("POST", "/jobs", {"prompt": "a hen", "model": "flux-demo"})[1]
    failed = live.finished(job["id"])
    assert failed["state"] == "failed" and failed["error"]["type"] == "insufficient_memory"
    assert "this machine has" in failed["error"]["message"]
    assert live.service.worker.model.pipeline is opened_before


def test_an_unexpected_error_is_told_without_a_traceback(
    live: LiveServer, monkeypatch: Any, capsys: Any, drawn: Callable[..., Image.Image]
) -> None:
    secret = "hush" * 2

    def fail(*_: object) -> None:
        raise RuntimeError(secret)

    with monkeypatch.context() as patch:
        patch.setattr("mlx_imagegen.serving.worker.Drawing.on_step", fail)
        status, answer = live.call("POST", "/v1/images/generations", {"prompt": "a hen"} | SMALL)
    assert status == 500 and "log" in answer["error"]["message"] and secret not in json.dumps(answer)
    logged = capsys.readouterr().err
    assert "RuntimeError" in logged and "test_job_routes.py" in logged and secret not in logged
    status, answer = live.call("POST", "/v1/images/generations", {"prompt": "a hen", "seed": 3} | SMALL)
    assert status == 200 and same(opened(answer["data"][0]["b64_json"]), drawn("a hen", seed=3))


def test_the_log_names_no_prompt_unless_asked(live: LiveServer, monkeypatch: Any, capsys: Any) -> None:
    for asked in (False, True):
        monkeypatch.setattr(live.service, "options", replace(live.service.options, log_prompts=asked))
        live.finished(live.call("POST", "/jobs", {"prompt": "a secret hen"} | SMALL)[1]["id"])
        ends_at = time.monotonic() + 5
        while live.service.worker.current and time.monotonic() < ends_at:  # its line comes last
            time.sleep(0.01)
        time.sleep(0.05)
        logged = capsys.readouterr().err
        assert "tiny, 1 of 1 pictures, done" in logged and ("secret hen" in logged) == asked


def test_an_idle_model_leaves_memory(start: Callable[..., LiveServer], drawn: Callable[..., Image.Image]) -> None:
    live = start(idle_seconds=0.2)
    try:
        ends_at = time.monotonic() + 5
        while live.service.worker.model.pipeline is not None and time.monotonic() < ends_at:
            time.sleep(0.02)
        assert live.service.worker.model.pipeline is None
        job = live.finished(live.call("POST", "/jobs", {"prompt": "a hen", "seed": 3} | SMALL)[1]["id"])
        assert same(live.picture(job["results"][0]["url"]), drawn("a hen", seed=3))
    finally:
        live.close()


def test_models_and_what_they_refuse(live: LiveServer) -> None:
    answer = live.call("GET", "/models")[1]
    models = {model["name"]: model for model in answer["models"]}
    assert answer["default"] == "tiny" and "true_cfg" in models["qwen-demo"]["refuses"]
    assert {"sampler", "layout"} <= set(models["flux-demo"]["refuses"]) and "sampler" not in models["hidream-demo"][
        "refuses"
    ]
    assert {"name": "flux-night", "family": "FLUX.1"} in answer["loras"]
    assert {"prompt", "guidance", "seed"} <= {row["name"] for row in answer["parameters"]}
    status, fits = live.call("GET", "/models/flux-demo/fits")
    assert status == 200 and [fit["quant"] for fit in fits["fits"]] == [None, "q8", "q6", "q4"]


def test_a_picture_to_start_from(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    fields = {
        "prompt": "a hen",
        "seed": 3,
        "image": f"data:image/png;base64,{in_base64(png())}",
        "strength": 0.9,
        "steps": 2,
    }
    job = live.finished(live.call("POST", "/jobs", fields)[1]["id"])
    expected = drawn("a hen", seed=3, image=Image.new("RGB", (48, 32), "teal"), strength=0.9)
    assert same(live.picture(job["results"][0]["url"]), expected)
    assert "--image FILE" in job["results"][0]["command"]
