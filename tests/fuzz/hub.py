"""A hub on this machine that misbehaves, and the real client's downloads from it.

A download gives the published bytes or a DownloadError in one line; the next one, from a hub that behaves, succeeds.
`python -m tests.fuzz.hub COUNT SEED`.
"""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote, urlparse

from tests.fuzz.faults import ended

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": b'{"_class_name": "FluxPipeline"}',
    "transformer/config.json": b"{}",
    "transformer/model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}',
    "transformer/one.safetensors": Random(1).randbytes(300_000),
    "transformer/two.safetensors": Random(2).randbytes(70_000),
}
PATTERNS = ("model_index.json", "transformer/*.json", "transformer/*.safetensors")
FAULTS = (
    "reset", "truncate", "flip", "zeros", "long", "listed short", "listed long", "drip", "circle", "page", "no listing",
    "401", "403", "404", "429", "500", "503", "killed", "reset once",
)  # fmt: skip
LINE_LENGTH = 400


class Hub(http.server.BaseHTTPRequestHandler):
    """`fault` is read from a file at each request; it is met by requests whose number says so."""

    order: Path
    latest, requests = "", 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        order = self.order.read_text()
        if order != Hub.latest:
            Hub.latest, Hub.requests = order, 0
        fault, _, first = order.partition(":")
        Hub.requests += 1
        faulty = fault if fault and Hub.requests > int(first) else ""
        faulty = {"killed": "drip", "reset once": "reset"}.get(faulty, faulty)
        if fault == "reset once" and faulty and "/resolve/" in self.path and self.command == "GET":
            self.order.write_text("")
        path = unquote(urlparse(self.path).path)
        if faulty.isdigit():
            self._answer(int(faulty), b"", {})
        elif faulty == "circle":
            self._answer(302, b"", {"Location": self.path})
        elif path.startswith("/api/models/"):
            self._list(path, faulty)
        elif "/resolve/" in path:
            self._send(FILES[path.partition("/resolve/")[2].partition("/")[2]], faulty)
        else:
            self._answer(200, b"", {})

    def _list(self, path: str, fault: str) -> None:
        change = {"listed short": -7, "listed long": 7}.get(fault, 0)
        entries = [
            {"type": "file", "path": name, "size": len(data) + change, "oid": hashlib.sha256(data).hexdigest()[:40]}
            for name, data in FILES.items()
        ]
        siblings = [{"rfilename": name} for name in FILES]
        listing: Any = entries if "/tree/" in path else {"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}
        text = b"{" if fault == "no listing" else json.dumps(listing).encode()
        self._answer(200, text, {"Content-Type": "application/json"})

    def _send(self, data: bytes, fault: str) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")[0])
        body = _changed(data, fault)[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "HEAD" or fault not in ("reset", "truncate", "drip"):
            self._answer(206 if start else 200, body, headers)
            return
        self.send_response(206 if start else 200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "drip":
            for at in range(0, min(len(body), 300_000), 30_000):
                self.wfile.write(body[at : at + 30_000])
                time.sleep(0.05)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client has gone, or this end was closed on purpose
            super().handle()


def _changed(data: bytes, fault: str) -> bytes:
    if fault == "flip":
        return data[:-1] + bytes([data[-1] ^ 4])
    if fault == "zeros":
        return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    if fault == "page":
        return b"<html>Please sign in</html>"
    return data + b"more" if fault == "long" else data


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 98
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def fetch(cache: Path, report: Path) -> None:
    """In a child: the download, with how it ended in a file."""
    from huggingface_hub import constants

    from mlx_imagegen.errors import DownloadError
    from mlx_imagegen.hub import download
    from mlx_imagegen.hub.manifest import Defaults, Manifest

    wait = time.sleep
    time.sleep = lambda seconds: wait(float(seconds) / 100)  # the client's, up to 24 s before it gives a hub up
    constants.HF_HUB_CACHE = str(cache / "hub")
    os.environ["XDG_CACHE_HOME"] = str(cache / "own")
    tiny = Manifest("tiny", "Tiny", "flux1", Defaults(4, 64, 64, 0.0), "someone/tiny", COMMIT, download=PATTERNS)
    with report.open("w") as said:
        os.dup2(said.fileno(), 2)
        try:
            ending = {"folder": str(download.fetch(tiny, lambda line: None))}
        except DownloadError as error:
            ending = {"refused": str(error)}
        except BaseException as error:
            ending = {"raised": f"{type(error).__name__}: {error}"[:300]}
    report.write_text(json.dumps(ending))


def wrong(report: Path, cache: Path, must_succeed: bool) -> str | None:
    ending = json.loads(report.read_text())
    if "folder" in ending:
        found = {name: (Path(ending["folder"]) / name).read_bytes() for name in FILES}
        return None if found == FILES else "what was downloaded differs from what was published"
    line = ending.get("refused", "").replace(str(cache), "F")
    if must_succeed or not line or len(line) > LINE_LENGTH or not line.isprintable():
        return f"{'the second run: ' if must_succeed else ''}{ending}"[:400]
    return None


def campaign(count: int, seed: int) -> int:
    dice, failures = Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "order"
        order.write_text("")
        Hub.order = order
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        serving = forked(server.serve_forever)
        os.environ |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5",
        }  # fmt: skip
        from huggingface_hub import hf_hub_download, snapshot_download  # noqa: F401  # here, not in each child

        import mlx_imagegen.hub.download  # noqa: F401

        try:
            for number in range(count):
                fault, first = FAULTS[number % len(FAULTS)], dice.randrange(12)
                failures += _one(
                    Path(folder), order, f"{fault}:{first}", f"number {number} seed {seed}", dice.uniform(0, 0.8)
                )
        finally:
            os.kill(serving, signal.SIGKILL)
            os.waitpid(serving, 0)
    print(f"{count} faults of the hub, seed {seed}: {failures} failures")
    return failures


def _one(folder: Path, order: Path, fault: str, name: str, seconds: float) -> int:
    """`seconds`: until a download is killed, if it is."""
    cache, report = folder / "cache", folder / "report"
    order.write_text(fault)
    failed = None
    for must_succeed in (False, True):
        if must_succeed:
            order.write_text("")
        child = forked(lambda: fetch(cache, report))
        is_killed = fault.startswith("killed") and not must_succeed
        if ended(child, seconds if is_killed else 120) is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            failed = None if is_killed else "not done after 120 s"
        else:
            failed = wrong(report, cache, must_succeed or fault.startswith("reset once"))
        if failed:
            break
    if not failed and list(cache.rglob("*.incomplete")):
        failed = "the second run left a part of a file"
    shutil.rmtree(cache, ignore_errors=True)
    if failed:
        print(f"hub: {fault} {name}: {failed}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(bool(campaign(int(sys.argv[1]), int(sys.argv[2]))))
