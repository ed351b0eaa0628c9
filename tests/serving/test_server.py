"""The server as a process: what it prints, how it ends, and that nothing of it is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.errors import RequestError
from mlx_imagegen.serving.server import address_of, bind

from .conftest import LONG, SMALL

Start = Callable[..., "Process"]


class Process:
    def __init__(self, port: int, *words: str):
        command = [sys.executable, "-m", "mlx_imagegen", "serve", "--port", str(port), *words]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout
        self.lines = [self.process.stdout.readline().strip() for _ in range(4)]

    def post(self, fields: dict[str, Any]) -> tuple[int, Any]:
        address = self.lines[1].removeprefix("page: ")
        request = urllib.request.Request(f"{address}v1/images/generations", json.dumps(fields).encode())
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:  # nobody answers
            return 0, None

    def end_while_drawing(self, number: int) -> tuple[tuple[int, Any], float]:
        """What a waiting client gets, and how many seconds the process needs to go."""
        answers: list[tuple[int, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(self.post({"prompt": "a hen"} | LONG)))
        thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(10)
        seconds = time.monotonic() - started
        thread.join(5)
        return answers[0], seconds


@pytest.fixture
def start(models_folder: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(port: int = 0, *words: str) -> Process:
        started.append(Process(port, "--model", str(models_folder / "tiny"), *words))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_from_its_start_to_ctrl_c(start: Start) -> None:
    """It prints where it is, and a request to copy."""
    port = free_port()
    server = start(port)
    address = f"http://127.0.0.1:{port}"
    assert server.lines[0].startswith(f"tiny at {address} ") and server.lines[1] == f"page: {address}/"
    curl = server.lines[2].replace("-d '{", f"-s -d '{json.dumps(SMALL)[:-1]}, ")
    ran = subprocess.run(["bash", "-c", curl], capture_output=True, text=True)
    assert json.loads(ran.stdout)["data"][0]["b64_json"], ran
    answer, seconds = server.end_while_drawing(signal.SIGINT)
    assert seconds < 3, "benchmarks/serving.py measures it"
    assert answer[0] == 409 and "cancelled" in answer[1]["error"]["message"]
    assert server.process.returncode == 0 and "Traceback" not in server.process.communicate()[1]
    bind("127.0.0.1", port).close()


def test_a_killed_one_leaves_nothing_behind(start: Start) -> None:
    port = free_port()
    answer, _ = start(port).end_while_drawing(signal.SIGKILL)
    assert answer[0] == 0
    second = start(port)
    assert second.post({"prompt": "a hen"} | SMALL)[0] == 200
    answer, _ = second.end_while_drawing(signal.SIGTERM)
    assert answer[0] == 409 and second.process.returncode == 0


def test_a_port_that_is_taken_is_named() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = int(address_of(taken).rpartition(":")[2])
        with pytest.raises(RequestError, match=f"port {port}: .*Choose another with --port"):
            bind("127.0.0.1", port)
    with pytest.raises(RequestError, match="no address of this machine"):
        bind("no such host", 0)
    with pytest.raises(RequestError, match="--port 99999: give a number from 1 to 65535"):
        bind("127.0.0.1", 99999)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "add --token"),
        (["--quant", "q3"], "give one of"),
        (["--max-queue", "0"], "give a number from 1"),
        (["--model", "nothing"], "no model is called"),
        (["--models-dir", "nowhere"], "--models-dir: nowhere"),
        (["--idle-unload", "-1"], "give minutes"),
    ],
)
def test_bad_flags_are_refused(cli: Callable[..., Any], words: list[str], message: str) -> None:
    ran = cli("serve", "--port", 0, *words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
