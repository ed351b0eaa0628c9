"""OpenAI's Images API, asked by OpenAI's own client."""

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from .conftest import LONG, SMALL, LiveServer, in_base64, opened, png, same

openai = pytest.importorskip("openai")


@pytest.fixture
def client(live: LiveServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def test_a_picture_is_the_librarys_own(client: Any, drawn: Callable[..., Image.Image]) -> None:
    answer = client.images.generate(model="tiny", prompt="a hen", size="48x32", n=2, extra_body={"seed": 3, "steps": 2})
    pictures = [opened(each.b64_json) for each in answer.data]
    assert [each.seed for each in answer.data] == [3, 4] and answer.output_format == "png" and answer.size == "48x32"
    assert same(pictures[0], drawn("a hen", seed=3)) and same(pictures[1], drawn("a hen", seed=4))
    assert '"seed": 3' in pictures[0].text["mlx_imagegen"]  # type: ignore[attr-defined]
    assert answer.data[0].record["model"] == "tiny", "no folder of this machine"
    assert answer.usage.total_tokens == 0 and answer.created > 10**9


def test_pictures_as_urls_and_in_other_formats(
    client: Any, live: LiveServer, drawn: Callable[..., Image.Image]
) -> None:
    answer = client.images.generate(
        prompt="a hen", response_format="url", output_format="webp", background="opaque", extra_body=SMALL | {"seed": 3}
    )
    path = answer.data[0].url.removeprefix(live.url)
    with live.request("GET", path) as response:
        assert response.headers["content-type"] == "image/webp" and opened(response.read()).format == "WEBP"
    path = path.replace(".webp", ".png")
    assert same(live.picture(path), drawn("a hen", seed=3))
    assert live.call("GET", path.replace("/0.", "/7."))[0] == 404


def test_unfinished_pictures_are_streamed(client: Any, drawn: Callable[..., Image.Image]) -> None:
    events = list(
        client.images.generate(
            prompt="a hen", stream=True, partial_images=3, extra_body=SMALL | {"seed": 3, "steps": 8}
        )
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    last = opened(events[-1].b64_json)
    assert same(last, drawn("a hen", seed=3, steps=8))
    assert not same(opened(events[0].b64_json), last) and opened(events[0].b64_json).size == (48, 32)


def test_a_picture_is_edited(client: Any, drawn: Callable[..., Image.Image]) -> None:
    expected = drawn("a hen", seed=3, image=Image.new("RGB", (48, 32), "teal"), strength=0.9)
    for image in (("a.png", png(), "image/png"), [("a.png", png(), "image/png")]):  # as `image`, and as `image[]`
        answer = client.images.edit(
            image=image, prompt="a hen", model="tiny", n=1, extra_body={"seed": 3, "steps": 2, "strength": 0.9}
        )
        assert same(opened(answer.data[0].b64_json), expected)
    events = list(client.images.edit(image=png(), prompt="a hen", stream=True, extra_body={"seed": 3, "steps": 2}))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_several_pictures_are_one_list(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="image: 2 pictures are given"):
        client.images.edit(image=[png(), png()], prompt="a hen", model="tiny")


def test_an_edit_as_json(live: LiveServer, drawn: Callable[..., Image.Image]) -> None:
    body = {"prompt": "a hen", "images": [{"image_url": f"data:image/png;base64,{in_base64(png())}"}], "seed": 3}
    status, answer = live.call("POST", "/v1/images/edits", body | {"steps": 2, "strength": 0.9})
    assert status == 200
    expected = drawn("a hen", seed=3, image=Image.new("RGB", (48, 32), "teal"), strength=0.9)
    assert same(opened(answer["data"][0]["b64_json"]), expected)


def test_a_mask_is_passed_on_or_refused_with_the_reason(client: Any) -> None:
    mask = Image.new("RGBA", (48, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 24, 32))
    file = io.BytesIO()
    mask.save(file, "PNG")

    files = {"image": png(), "mask": file.getvalue()}
    edited = client.images.edit(**files, prompt="a hen", extra_body={"seed": 3, "steps": 2})
    kept = opened(edited.data[0].b64_json).crop((40, 0, 48, 32))
    assert same(kept, opened(png()).crop((40, 0, 48, 32)))


def test_models_are_listed(client: Any) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "tiny" and {"flux-demo", "qwen-demo"} <= set(names)
    assert client.models.retrieve("qwen-demo").id == "qwen-demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "48"}, "WIDTHxHEIGHT"),
        ({"size": "50x32"}, "multiple of 16"),
        ({"n": 11}, "up to 10 pictures"),
        ({"background": "transparent"}, "no transparency"),
        ({"output_format": "gif"}, "output_format"),
        ({"partial_images": 4, "stream": True}, "from 0 to 3"),
        ({"extra_body": {"steps": 201, **SMALL} | {"steps": 201}}, "up to 200 steps"),
        ({"extra_body": {"num_inference_steps": 4}}, "did you mean steps"),
    ],
)
def test_refusals_are_bad_requests(client: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.generate(**{"prompt": "a hen"} | fields)


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean tiny"):
        client.images.generate(prompt="a hen", model="tiny2")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_job(live: LiveServer, stream: bool) -> None:
    body = json.dumps({"prompt": "a hen", "stream": stream} | LONG).encode()
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    connection.request("POST", "/v1/images/generations", body)
    time.sleep(0.3)
    job = live.service.store.all()[0]
    assert job.state in ("preparing", "drawing")
    connection.close()
    ends_at = time.monotonic() + 5
    while not job.finished and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert job.state == "cancelled" and not job.results


def test_past_the_queue_clients_are_told_when_to_come_again(start: Callable[..., LiveServer]) -> None:
    live = start(max_queue=1)
    try:
        threads = [
            threading.Thread(target=live.call, args=("POST", "/v1/images/generations", {"prompt": "a hen"} | LONG))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.15)
        with live.request("POST", "/v1/images/generations", {"prompt": "a hen"} | SMALL) as response:
            assert response.status == 429 and int(response.headers["retry-after"]) >= 1
            assert "waiting already" in json.loads(response.read())["error"]["message"]
        for job in live.service.store.all():
            live.service.cancel(job)
        for thread in threads:
            thread.join(5)
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused") as client:
            assert client.images.generate(prompt="a hen", extra_body=SMALL).data
    finally:
        live.close()
