"""Repositories with an equal file keep it once: the hub's client (from 2.4, or before) links it by its content.

Z-Image and Z-Image-Turbo have one text encoder and one autoencoder. The hub is one of our own over HTTP, with the real
client; what it does after a download by Xet, which this hub cannot serve, is asked of the client itself.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from mlx_imagegen.hub import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENCODER = b"the same text encoder" * 5000
SHARED = "text_encoder/model.safetensors"
FILES = {SHARED: ENCODER, "transformer/model.safetensors": b"of this model alone" * 100, "model_index.json": b"{}"}
served: list[str] = []


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path in ("", "/"):  # whether the hub can be reached at all
            self._answer(b"", {})
            return
        if path.startswith("/api/models/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in FILES.items()
            ]
            listing = entries if "/tree/" in path else {"id": "someone/turbo", "sha": COMMIT, "siblings": []}
            self._answer(json.dumps(listing).encode(), {"Content-Type": "application/json"})
            return
        name = path.partition("/resolve/")[2].partition("/")[2]
        headers = {"ETag": f'"{digest(FILES[name])}"', "X-Repo-Commit": COMMIT}
        if name == SHARED:
            headers |= {"X-Xet-Hash": digest(ENCODER), "X-Xet-Refresh-Route": "/xet"}
        if self.command == "GET":
            served.append(name)
        self._answer(FILES[name], headers)

    def _answer(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub_address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


RUN = """
import sys
from pathlib import Path
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
from mlx_imagegen.hub.download import Download, fetch_files

digest, patterns, base = sys.argv[1], ("model_index.json", "*.safetensors"), Path(sys.argv[2])
blob = Path(HF_HUB_CACHE) / "models--someone--base" / "blobs" / digest
blob.parent.mkdir(parents=True)
blob.write_bytes(base.read_bytes())
size = blob.stat().st_size
assert publish_blob_to_shared_store(blob_path=str(blob), xet_hash=digest, cache_dir=HF_HUB_CACHE, expected_size=size)
said = []
wanted = Download("Turbo", "someone/turbo", "0123456789abcdef0123456789abcdef01234567", patterns, "MIT")
folder = fetch_files(wanted, said.append)
print(said[0].split(" from ")[0])
print(folder / "text_encoder" / "model.safetensors")
print(blob.resolve())
"""


def test_an_encoder_that_another_model_brought_is_not_downloaded_again(tmp_path: Path, hub_address: str) -> None:
    pytest.importorskip("huggingface_hub.utils._shared_blobs", reason="this version of the client shares no files")
    served.clear()
    (tmp_path / "encoder").write_bytes(ENCODER)
    environment = os.environ | {
        "HF_ENDPOINT": hub_address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1", "PYTHONPATH": str(Path(download.__file__).parents[2]),
    }  # fmt: skip
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_SHARED_BLOBS"):
        environment.pop(name, None)
    command = [sys.executable, "-c", RUN, digest(ENCODER), str(tmp_path / "encoder")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    said, here, there = ran.stdout.splitlines()
    assert said == "Downloading Turbo: 0.0 GB in 2 files" and SHARED not in served
    assert Path(here).read_bytes() == ENCODER and Path(here).resolve() == Path(there)
