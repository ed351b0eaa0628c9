"""Who may ask, and how much they may send."""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.commands import serve
from mlx_imagegen.serving.safety import Access, is_loopback

from .conftest import SMALL, LiveServer, in_base64, png

TOKEN = "correct horse battery"
PLACES = (("GET", "/v1/models"), ("GET", "/jobs"), ("POST", "/jobs"), ("POST", "/sdapi/v1/txt2img"), ("GET", "/models"))


@pytest.fixture(scope="module")
def guarded(start: Callable[..., LiveServer]) -> Iterator[LiveServer]:
    server = start(Access.of(TOKEN))
    yield server
    server.close()


def raw(live: LiveServer, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """An answer to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "localhost.evil.example"]
)
def test_a_name_that_was_pointed_here_gets_nothing(live: LiveServer, host: str) -> None:
    for method, path in (*PLACES, ("GET", "/"), ("GET", "/page/app.js")):
        status, answer = live.call(method, path, {"prompt": "x"} if method == "POST" else None, {"Host": host})
        assert status == 403 and "--allow-host" in answer["error"]["message"], path
    assert not live.service.store.all()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:8642", "host.docker.internal:8642", "10.0.0.3"]
)
def test_names_of_this_machine_are_answered(live: LiveServer, host: str) -> None:
    assert live.call("GET", "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_gets_nothing(live: LiveServer, headers: dict[str, str]) -> None:
    for method, path in PLACES:
        status, answer = live.call(method, path, {"prompt": "x"} if method == "POST" else None, headers)
        assert status == 403 and "another site" in answer["error"]["message"], path
    assert not live.service.store.all()


def test_the_pages_own_requests_and_links_to_it_are_answered(live: LiveServer) -> None:
    own = {"Origin": live.url, "Sec-Fetch-Site": "same-origin"}
    assert live.call("GET", "/models", headers=own)[0] == 200
    host = f"GET / HTTP/1.1\nHost: 127.0.0.1:{live.port}\nConnection: close\n"
    status, headers, body = raw(live, f"{host}Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate")
    assert status == 200 and b"<title>mlx-imagegen" in body
    assert headers["x-frame-options"] == "DENY" and "script-src 'self'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers and "server" not in headers


def test_the_token_is_asked_for(guarded: LiveServer) -> None:
    for method, path in PLACES:
        body = {"prompt": "x"} if method == "POST" else None
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic !!"},
            {"Cookie": "mlx_imagegen=x"},
        ):
            assert guarded.call(method, path, body, wrong)[0] == 401, (path, wrong)
    assert not guarded.service.store.all()
    basic = [f"Basic {in_base64(text.encode())}" for text in (f"user:{TOKEN}", TOKEN)]
    for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", *basic):
        assert guarded.call("GET", "/v1/models", headers={"Authorization": right})[0] == 200


def test_the_page_changes_the_token_for_a_cookie(guarded: LiveServer) -> None:
    assert raw(guarded, f"GET / HTTP/1.1\nHost: 127.0.0.1:{guarded.port}\nConnection: close")[0] == 200
    assert guarded.call("POST", "/session", {"token": "wrong"})[0] == 401
    assert guarded.call("POST", "/session", {"token": 7})[0] == 401
    body = json.dumps({"token": TOKEN}).encode()
    head = f"POST /session HTTP/1.1\nHost: 127.0.0.1:{guarded.port}\nContent-Length: {len(body)}\nConnection: close"
    status, headers, _ = raw(guarded, head, body)
    cookie = headers["set-cookie"]
    assert status == 200 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert guarded.call("GET", "/models", headers={"Cookie": cookie.partition(";")[0]})[0] == 200


def test_a_pictures_address_opens_it_without_the_token(guarded: LiveServer) -> None:
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    fields = {"prompt": "x", "response_format": "url"} | SMALL
    _, answer = guarded.call("POST", "/v1/images/generations", fields, authorized)
    path = answer["data"][0]["url"].removeprefix(guarded.url)
    assert raw(guarded, f"GET {path} HTTP/1.1\nHost: 127.0.0.1:{guarded.port}\nConnection: close")[0] == 200
    assert len(path.split("/")[2]) >= 22, "as long as it takes not to be guessed"


def test_large_bodies_are_refused(start: Callable[..., LiveServer]) -> None:
    live = start(Access.of(None).__class__(None, Access.of(None).hosts, body_bytes=5000))
    try:
        status, answer = live.call("POST", "/jobs", {"prompt": "x" * 6000})
        assert status == 413 and "larger than" in answer["detail"]
        head = f"POST /jobs HTTP/1.1\nHost: 127.0.0.1:{live.port}\nTransfer-Encoding: chunked\nConnection: close"
        chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert raw(live, head, chunk * 6 + b"0\r\n\r\n")[0] == 413
        assert not live.service.store.all()
    finally:
        live.close()


GENERATIONS, EDITS, TXT2IMG = "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img"
CHECKPOINT = {"sd_model_checkpoint": [1]}
MALFORMED: list[tuple[str, Any]] = [
    ("/jobs", b"{"), ("/jobs", b"[]"), ("/jobs", b"\xff\xfe\x00"), ("/jobs", b"[" * 50_000), ("/jobs", {}),
    ("/jobs", {"prompt": "x", "steps": 10**19}), ("/jobs", {"prompt": "x", "width": -16}),
    ("/jobs", b'{"prompt": "x", "guidance": 1e999}'), ("/jobs", b'{"prompt": "x", "guidance": NaN}'),
    ("/jobs", {"prompt": "x", "image": "../../etc/passwd"}), ("/jobs", {"prompt": "x", "references": {}}),
    ("/jobs", {"prompt": "x", "lora": [[["x"]]]}), ("/jobs", {"prompt": "x", "model": {"a": 1}}),
    ("/jobs", {"prompt": "x", "seed": [[1]]}), ("/jobs", {"prompt": "x", "layout": [1, "x"]}),
    ("/jobs", {"prompt": "\ud800"}), (GENERATIONS, {"prompt": "x", "size": "9999999999x1"}),
    (GENERATIONS, {"prompt": "x", "n": "two"}), (GENERATIONS, {"prompt": "x", "stream": 3}),
    (EDITS, {"prompt": "x", "image": [{}]}), (EDITS, {"prompt": "x", "image": in_base64(png()[:60])}),
    (TXT2IMG, {"prompt": 3}), (TXT2IMG, {"prompt": "x", "seed": "x"}), (TXT2IMG, {"prompt": "x", "cfg_scale": {}}),
    (TXT2IMG, {"prompt": "x", "sampler_name": [1]}), (TXT2IMG, {"prompt": "x", "override_settings": CHECKPOINT}),
    ("/sdapi/v1/img2img", {"init_images": [3], "prompt": "x"}), ("/sdapi/v1/options", b"x"), ("/session", b"3"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), MALFORMED)
def test_malformed_requests_are_refused_with_a_message(live: LiveServer, path: str, body: Any) -> None:
    status, answer = live.call("POST", path, body)
    assert 400 <= status < 500 and answer["error"]["message"] == answer["detail"] and len(answer["detail"]) > 10
    assert "Traceback" not in answer["detail"] and "\n" not in answer["detail"]


def test_malformed_forms_are_refused(live: LiveServer) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    for body in (
        b"--c\r\n", b"", part % (b"prompt", b"x"), part % (b"n", b"many") + b"--b--",
        (part % (b"a", b"b")) * 200 + b"--b--",
        part % (b"prompt", b"x") + part % (b"image", b"no picture") + b"--b--",
    ):  # fmt: skip
        status, answer = live.call("POST", "/v1/images/edits", body, kind)
        assert 400 <= status < 500 and answer["detail"], body
    assert live.call("POST", "/v1/images/edits", b"x", {"Content-Type": "multipart/form-data"})[0] == 400


def test_addresses_and_methods_that_are_not_there(live: LiveServer) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404), ("DELETE", "/v1/models", 405), ("GET", "/page/../service.py", 404),
        ("GET", "/page/%2e%2e%2fservice.py", 404), ("GET", "/pictures/x/0.png", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404), ("GET", "/jobs/x/events", 404),
    ):  # fmt: skip
        assert live.call(method, path)[0] == status, path


def arguments(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    serve.flags(parser)
    return parser.parse_args(words)


def test_other_machines_are_let_in_with_a_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    assert serve._token(arguments()) is None and serve._token(arguments("--host", "::1")) is None
    for host in ("0.0.0.0", "::", "192.168.1.3", "my-mac.local"):
        assert not is_loopback(host)
        with pytest.raises(serve.RequestError, match="add --token"):
            serve._token(arguments("--host", host))
    assert len(serve._token(arguments("--host", "0.0.0.0", "--token")) or "") >= 32
    with pytest.raises(serve.RequestError, match="can be guessed"):
        serve._token(arguments("--token", "short"))
    monkeypatch.setenv(serve.TOKEN_VARIABLE, TOKEN)
    assert serve._token(arguments("--host", "0.0.0.0")) == TOKEN


def test_the_server_writes_no_file(live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert live.call("POST", "/v1/images/generations", {"prompt": "x", "response_format": "url"} | SMALL)[0] == 200
    assert list(tmp_path.iterdir()) == []
