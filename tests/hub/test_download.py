"""Downloads against a hub of our own: in memory, and over HTTP on this machine with the real client."""

import contextlib
import errno
import fcntl
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from mlx_imagegen.errors import DownloadError, MissingFileError, RequestError, UnknownModelError
from mlx_imagegen.hub import download
from mlx_imagegen.hub.download import Download, RemoteFile, absent, fetch, locate
from mlx_imagegen.hub.manifest import Defaults, Manifest, manifests
from mlx_imagegen.hub.snapshots import cached, remove_orphans
from mlx_imagegen.loading.checkpoint import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": json.dumps({"_class_name": "FluxPipeline"}).encode(),
    "transformer/config.json": b"{}",
    "transformer/model.safetensors.index.json": (
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    ),
    "transformer/one.safetensors": b"1" * 3000,
    "transformer/two.safetensors": b"2" * 5000,
    "README.md": b"not asked for",
    "onnx/model.onnx": b"not asked for either",
}
PATTERNS = ("model_index.json", "transformer/*.json", "transformer/*.safetensors")
MODEL = Manifest(
    "tiny", "Tiny", "flux1", Defaults(4, 64, 64, 0.0), "someone/tiny", COMMIT, licence="MIT", download=PATTERNS
)


def put(cache: Path, files: dict[str, bytes], repo: str = "someone/tiny", commit: str = COMMIT) -> Path:
    """Files as the hub's client lays them: real ones under blobs/, links to them under snapshots/."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    for name, data in files.items():
        blob = storage / "blobs" / f"{abs(hash(name)):x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = storage / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    (storage / "refs" / "main").write_text(commit)
    return storage / "snapshots" / commit


class FakeHub:
    def __init__(self, cache: Path, error: Exception | None = None, files: dict[str, bytes] = FILES):
        self.cache, self.error, self.files = cache, error, files
        self.asked: list[str] = []

    def _matching(self, wanted: Download) -> list[str]:
        return [name for name in self.files if any(fnmatch(name, pattern) for pattern in wanted.patterns)]

    def _asked(self, what: str, wanted: Download) -> list[str]:
        self.asked.append(what)
        if self.error:
            raise self.error
        return self._matching(wanted)

    def _here(self, wanted: Download) -> set[str]:
        folder = cached(self.cache, wanted.repo, wanted.revision)
        return names(folder) if folder else set()

    def is_whole(self, wanted: Download) -> bool:
        return self._here(wanted) >= set(self._matching(wanted))

    def plan(self, wanted: Download) -> list[RemoteFile]:
        here = self._here(wanted)
        return [RemoteFile(name, len(self.files[name]), name in here) for name in self._asked("plan", wanted)]

    def download(self, wanted: Download) -> Path:
        missing = set(self._asked("download", wanted)) - self._here(wanted)
        return put(self.cache, {name: self.files[name] for name in missing}, wanted.repo)


def refuse(line: str) -> None:
    raise AssertionError(f"nothing should be downloaded: {line}")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_asked_for_after_saying_how_much(tmp_path: Path) -> None:
    said: list[str] = []
    hub = FakeHub(tmp_path)
    folder = fetch(MODEL, said.append, hub)
    assert names(folder) == set(FILES) - {"README.md", "onnx/model.onnx"}
    assert said == [f"Downloading Tiny: 0.0 GB in 5 files from someone/tiny into {tmp_path}. Licence: MIT."]
    assert hub.asked == ["plan", "download"]


def test_gigabytes_are_of_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path)
    sizes = [RemoteFile("model_index.json", 10**9, True), RemoteFile("transformer/config.json", 10**9, False)]
    monkeypatch.setattr(hub, "plan", lambda *_: [*sizes, RemoteFile("transformer/one.safetensors", 3 * 10**9, False)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))  # type: ignore[attr-defined]
    said: list[str] = []
    fetch(MODEL, said.append, hub)
    assert "4.0 GB in 2 files" in said[0]


def test_a_whole_copy_in_the_cache_asks_nobody(tmp_path: Path) -> None:
    folder = put(tmp_path, FILES)
    hub = FakeHub(tmp_path, AssertionError("the network"))
    assert fetch(MODEL, refuse, hub) == folder
    assert fetch(replace(MODEL, revision="main"), refuse, hub) == folder
    assert hub.asked == []


@pytest.mark.parametrize("gone", ["model_index.json", "transformer/two.safetensors", "transformer/config.json"])
def test_a_download_that_broke_off_goes_on(gone: str, tmp_path: Path) -> None:
    folder = put(tmp_path, {name: data for name, data in FILES.items() if name != gone})
    # No index names a config: only the client's own listing tells that it is missing.
    assert absent(folder, PATTERNS) == ([] if gone == "transformer/config.json" else [gone])
    said: list[str] = []
    assert fetch(MODEL, said.append, FakeHub(tmp_path)) == folder
    assert "in 1 files" in said[0] and "(4 of 5 files are here already)" in said[0]
    assert names(folder) == set(FILES)


def test_without_a_network_the_missing_files_are_named(tmp_path: Path) -> None:
    put(tmp_path, {name: data for name, data in FILES.items() if "two" not in name})
    with pytest.raises(DownloadError, match="its copy in the cache lacks transformer/two.safetensors. Connect"):
        fetch(MODEL, refuse, FakeHub(tmp_path, ConnectionError("no route to host")))
    with pytest.raises(DownloadError, match="no route to host.*it is not in the cache"):
        fetch(replace(MODEL, repo="someone/else"), refuse, FakeHub(tmp_path, ConnectionError("no route to host")))


def test_a_full_disk_is_refused_before_and_explained_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**9))  # type: ignore[attr-defined]
    hub = FakeHub(tmp_path / "not" / "made" / "yet")
    with pytest.raises(DownloadError, match="needs 0.0 GB more .*1.0 GB free. Free some room, or set HF_HOME"):
        fetch(MODEL, refuse, hub)
    assert hub.asked == ["plan"]
    monkeypatch.undo()
    hub = FakeHub(tmp_path)
    monkeypatch.setattr(
        hub, "download", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(DownloadError, match="disk became full while Tiny.*files that are whole are kept"):
        fetch(MODEL, lambda line: None, hub)


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_network(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/Volumes/models")
    with pytest.raises(DownloadError, match="cannot be written .*/Volumes/models.*; set HF_HOME"):
        fetch(MODEL, refuse, FakeHub(tmp_path, error))


def test_a_repository_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has no transformer/\\*.safetensors"):
        fetch(MODEL, refuse, FakeHub(tmp_path, files={"model_index.json": b"{}", "transformer/config.json": b"{}"}))


def test_a_manifest_without_a_repository(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="names no repository"):
        fetch(replace(MODEL, repo=None), refuse, FakeHub(tmp_path))


def test_a_repository_without_a_manifest_is_told_by_its_files(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has no scheduler"):  # told to be FLUX.1, then found to lack most of it
        locate("someone/tiny", refuse, FakeHub(tmp_path))
    whole = {name.replace("*", "x"): b"{}" for name in manifests()["flux-schnell"].download} | FILES
    hub = FakeHub(tmp_path / "second", files=whole)
    model, folder = locate("someone/finetune", lambda line: None, hub)
    assert (model.manifest.name, model.manifest.repo, model.manifest.revision) == (
        "flux-schnell",
        "someone/finetune",
        COMMIT,
    )
    assert folder == cached(hub.cache, "someone/finetune", COMMIT)
    again, _ = locate("someone/finetune", refuse, FakeHub(hub.cache, ConnectionError()))
    assert again == model


def test_names_that_are_no_repository_ask_nobody(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path)
    with pytest.raises(UnknownModelError):
        locate("flux-schnel", refuse, hub)
    with pytest.raises(MissingFileError):
        locate("./folder/that/is/not/there", refuse, hub)
    assert hub.asked == []


def test_generate_refuses_a_bad_request_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen import generate

    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("a download began"))
    with pytest.raises(RequestError, match="steps 0"):
        generate("a fox", model="flux-dev", steps=0)
    with pytest.raises(RequestError, match="width 1000"):
        generate("a fox", width=1000)


# The real client, against a hub that runs here.


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot needs."""

    resets = ""  # the file whose next transfer breaks off

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/someone/secret"):
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                for name, data in FILES.items()
            ]
            listing = entries if "/tree/" in path else {"id": "someone/tiny", "sha": COMMIT, "siblings": []}
            self._answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/someone/gated/"):
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Repo-Commit": COMMIT})
        elif "/resolve/" not in path:
            self._answer(404, path.encode(), {})
        else:
            name = path.partition("/resolve/")[2].partition("/")[2]
            data = FILES[name]
            if path.startswith("/someone/shaky/") and name == Hub.resets and self.command == "GET":
                Hub.resets = ""
                self._reset(data)
                return
            git_hash = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._answer(200, data, {"ETag": f'"{git_hash}"', "X-Repo-Commit": COMMIT})

    def _reset(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a connection that was closed on purpose
            super().handle()

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
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


@pytest.fixture
def fetched(tmp_path: Path) -> Callable[..., str]:
    """Runs fetch() in a process of its own: the client reads its settings once, when it is imported."""

    def run(address: str, offline: bool = False, **changes: Any) -> str:
        code = (
            "import sys, test_download as t\nfrom dataclasses import replace\n"
            f"try: print(t.fetch(replace(t.MODEL, **{changes!r})))\n"
            "except t.DownloadError as error: print('refused:', error)\n"
        )
        environment = os.environ | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(download.__file__).parents[2])]),
        }  # fmt: skip
        environment.pop("HF_TOKEN", None)
        environment.pop("HF_HUB_CACHE", None)
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        assert "Retrying" not in ran.stderr
        return ran.stdout.strip()

    return run


def test_the_real_client_downloads_resumes_and_works_offline(hub_address: str, fetched: Callable[..., str]) -> None:
    refused = fetched(hub_address, offline=True)
    assert "refused: Tiny cannot be downloaded" in refused and "unset HF_HUB_OFFLINE" in refused
    folder = Path(fetched(hub_address))
    assert folder.name == COMMIT
    assert {name: (folder / name).read_bytes() for name in names(folder)} == {
        name: data for name, data in FILES.items() if name not in ("README.md", "onnx/model.onnx")
    }
    assert fetched(hub_address, offline=True) == str(folder)
    for name, state in (
        ("transformer/two.safetensors", "lacks transformer/two"),
        ("transformer/config.json", "is not complete"),
    ):
        (folder / name).unlink()
        refused = fetched(hub_address, offline=True)
        assert refused.startswith("refused: Tiny cannot be downloaded") and f"its copy in the cache {state}" in refused
        assert fetched(hub_address) == str(folder)
        assert (folder / name).read_bytes() == FILES[name]


def test_a_reset_connection_is_tried_again(hub_address: str, fetched: Callable[..., str]) -> None:
    Hub.resets = "transformer/two.safetensors"
    folder = Path(fetched(hub_address, repo="someone/shaky"))
    assert Hub.resets == "", "the connection was reset"
    assert (folder / "transformer/two.safetensors").read_bytes() == FILES["transformer/two.safetensors"]


def test_what_killed_downloads_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, FILES)
    storage, locks = tmp_path / "models--someone--tiny", tmp_path / ".locks" / "models--someone--tiny"
    locks.mkdir(parents=True)
    blob, busy = "a" * 64, "b" * 64
    kept = {path.name for path in (storage / "blobs").iterdir()} | {f"{busy}.0123abcd.incomplete", f"{blob}.incomplete"}
    for name in (f"{blob}.0123abcd.incomplete", f"{blob}.89abcdef.incomplete", *kept):
        (storage / "blobs" / name).write_bytes(b"half")
    for name in (blob, busy):
        (locks / f"{name}.lock").touch()
    with (locks / f"{busy}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_orphans(tmp_path, "someone/tiny")
    assert {path.name for path in (storage / "blobs").iterdir()} == kept
    remove_orphans(tmp_path, "someone/tiny")  # nobody holds that lock any more
    assert {path.name for path in (storage / "blobs").iterdir()} == kept - {f"{busy}.0123abcd.incomplete"}


def test_the_real_client_s_refusals_are_explained(hub_address: str, fetched: Callable[..., str]) -> None:
    gated = fetched(hub_address, repo="someone/gated", gated=True)
    assert "Tiny is gated" in gated and "https://huggingface.co/someone/gated" in gated and "hf auth login" in gated
    assert "there is no repository https://huggingface.co/someone/secret" in fetched(hub_address, repo="someone/secret")


def test_without_a_network_the_answer_comes_at_once(fetched: Callable[..., str]) -> None:
    """The client alone would retry for 24 seconds, with a line for each try, which `fetched` refuses."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for changes in ({}, {"revision": "main"}):
        assert "refused: Tiny cannot be downloaded (ConnectError" in fetched(address, **changes)


def test_a_cut_file_in_the_cache_is_never_read(tmp_path: Path) -> None:
    """The cache names whole files only; what was cut by other means is found when it is opened."""
    whole = put(tmp_path, FILES)
    with pytest.raises(Exception, match="is no safetensors file: it begins with"):
        open_checkpoint(whole / "transformer")
