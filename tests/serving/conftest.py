"""A server of the tiny FLUX.1, in this process and on a real socket."""

import asyncio
import base64
import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.result import Result
from mlx_imagegen.serving.catalogue import Catalogue
from mlx_imagegen.serving.safety import Access
from mlx_imagegen.serving.server import Server, bind, configured, make_app
from mlx_imagegen.serving.service import Options, Service

SIZE = {"width": 48, "height": 32}
SMALL = {"steps": 2, **SIZE}
LONG = {"steps": 200, **SIZE}  # a second or more


class LiveServer:
    """`service` behind HTTP at `url`, until `close`."""

    def __init__(self, service: Service, access: Access):
        self.service = service
        bound = bind("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(configured(make_app(service, access)), lambda: None)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[bound])), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.service.stop(5)
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(5)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """An answer that is still to be read; closing it closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Connection": "close"} | (headers or {}))
        return connection.getresponse()

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        with self.request(method, path, body, headers) as response:
            return response.status, json.loads(response.read() or b"null")

    def picture(self, url: str) -> Image.Image:
        with self.request("GET", url.removeprefix(self.url)) as response:
            assert response.status == 200
            return opened(response.read())

    def finished(self, id: str) -> dict[str, Any]:
        """A job's last description."""
        job = self.service.store.get(id)
        assert job is not None
        asyncio.run(asyncio.wait_for(job.wait(), 20))
        status, described = self.call("GET", f"/jobs/{id}")
        assert status == 200
        return dict(described)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory, flux_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").symlink_to(flux_folder)
    (folder / "no-model").mkdir()
    return folder


@pytest.fixture(scope="session")
def start(models_folder: Path) -> Callable[..., LiveServer]:
    def started(access: Access | None = None, **options: Any) -> LiveServer:
        service = Service(Catalogue(str(models_folder / "tiny"), models_folder), Options(**options))
        service.start()
        return LiveServer(service, access or Access.of(None))

    return started


@pytest.fixture(scope="module")
def live(start: Callable[..., LiveServer]) -> Iterator[LiveServer]:
    server = start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def drawn(flux_folder: Path) -> Callable[..., Image.Image]:
    """The picture that the library draws without a server."""
    pipeline = load(flux_folder)

    def draw(prompt: str, **parameters: Any) -> Image.Image:
        result = pipeline.generate(prompt, **(SMALL | parameters))
        assert isinstance(result, Result)
        return result.image

    return draw


def png(color: str = "teal", size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def opened(data: str | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    image.load()
    return image


def same(first: Image.Image, second: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))
