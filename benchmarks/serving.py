"""A server under load: answers, order, memory, latency, shutdown, and malformed and hostile requests.

    python benchmarks/serving.py [--requests 200] [--clients 20] [--seed 0] [--malformed 300]

Starts `mlx-imagegen serve` with the built-in demo model and prints a line for each check. The exit code says whether
all passed.
"""

import argparse
import atexit
import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlx_imagegen import Result, load

ROOT = Path(__file__).parents[1]
MODEL = "flux-demo"
PROMPTS = ["a large red circle on a white background", "a small blue star on a pink background"]
STEPS = 2
RSS_GROWTH_MB = 40
failures: list[str] = []


def check(held: bool, line: str) -> None:
    print(f"{'ok  ' if held else 'FAIL'} {line}", flush=True)
    if not held:
        failures.append(line)


class Serving:
    """The server's process."""

    def __init__(self, *words: str, port: int = 0):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "mlx_imagegen", "serve", "--model", MODEL, "--port", str(port), *words]
        self.log = open(os.devnull, "w")  # noqa: SIM115, PTH123
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        atexit.register(self.process.kill)  # whatever fails here
        assert self.process.stdout
        lines = [self.process.stdout.readline() for _ in range(4)]
        self.port = int(lines[1].rpartition(":")[2].strip().rstrip("/"))

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 300
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def rss_mb(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def end(self, number: int) -> float:
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - started


@dataclass
class Outcome:
    client: str
    number: int  # in the order in which the client asked
    kind: str
    status: int = 0
    id: str = ""
    seed: int = 0
    prompt: str = ""
    picture: np.ndarray | None = field(default=None, repr=False)


def ask(server: Serving, outcome: Outcome, dice: random.Random) -> None:
    """One request in one of the ways in which clients ask, and go away."""
    outcome.seed, outcome.prompt = dice.randrange(8), dice.choice(PROMPTS)
    fields = {"prompt": outcome.prompt, "seed": outcome.seed, "steps": STEPS}
    own = {"X-Client-Id": outcome.client}
    if outcome.kind == "wait":
        while True:
            status, headers, body = server.call("POST", "/v1/images/generations", fields, own)
            if status != 429:
                break
            time.sleep(min(2, int(headers["retry-after"])))
        outcome.status, outcome.id = status, headers.get("x-job-id", "")
        if status == 200:
            outcome.picture = pixels(base64.b64decode(json.loads(body)["data"][0]["b64_json"]))
    elif outcome.kind == "disconnect":
        try:
            server.call("POST", "/v1/images/generations", fields | {"steps": 50}, own, timeout=dice.uniform(0.02, 0.8))
        except TimeoutError:
            outcome.status = -1
    else:
        status, _, body = server.call("POST", "/jobs", fields, own)
        outcome.status, outcome.id = status, json.loads(body).get("id", "")
        if status == 202 and outcome.kind == "cancel":
            time.sleep(dice.uniform(0, 0.6))
            server.call("DELETE", f"/jobs/{outcome.id}")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def load_test(
    server: Serving, requests: int, clients: int, seed: int, expected: dict[tuple[str, int], np.ndarray]
) -> None:
    dice = random.Random(seed)
    kinds = [dice.choices(["wait", "job", "cancel", "disconnect"], [6, 1, 1.5, 1.5])[0] for _ in range(requests)]
    outcomes = [Outcome(f"client{index % clients}", index // clients, kind) for index, kind in enumerate(kinds)]
    memory = [server.rss_mb()]

    def client(name: str) -> None:
        own = random.Random(f"{seed} {name}")
        for outcome in outcomes:
            if outcome.client == name:
                ask(server, outcome, own)

    threads = [threading.Thread(target=client, args=(f"client{index}",)) for index in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        memory.append(server.rss_mb())
    jobs = settled(server)
    seconds = time.monotonic() - started
    states = Counter(job["state"] for job in jobs)
    print(f"     {requests} requests of {clients} clients in {seconds:.0f} s: {dict(Counter(kinds))} -> {dict(states)}")
    waited = [outcome for outcome in outcomes if outcome.kind == "wait"]
    right = [o for o in waited if o.picture is not None and np.array_equal(o.picture, expected[o.prompt, o.seed])]
    check(len(right) == len(waited), f"{len(right)} of {len(waited)} waited-for pictures are those that generate makes")
    by_id = {job["id"]: job for job in jobs}
    left = [outcome for outcome in outcomes if outcome.kind == "job"]
    done = [outcome for outcome in left if by_id[outcome.id]["state"] == "done"]
    fetched = [pixels(server.call("GET", f"/pictures/{outcome.id}/0.png")[2]) for outcome in done]
    alike = [np.array_equal(got, expected[o.prompt, o.seed]) for got, o in zip(fetched, done, strict=True)]
    check(len(done) == len(left) and all(alike), f"{sum(alike)} of {len(left)} jobs asked after are done and right")
    check(set(states) <= {"done", "cancelled"}, "no job failed, none is lost or left")
    ordered(jobs, {outcome.id: outcome for outcome in outcomes if outcome.id})
    steady = memory[len(memory) // 4 :]
    growth = max(steady) - steady[0]
    check(
        growth < RSS_GROWTH_MB,
        f"RSS {memory[0]:.0f} MB at first, {steady[0]:.0f} after a quarter, {max(steady):.0f} at most",
    )


def settled(server: Serving) -> list[dict[str, Any]]:
    while True:
        jobs: list[dict[str, Any]] = json.loads(server.call("GET", "/jobs")[2])["jobs"]
        if all(job["state"] in ("done", "failed", "cancelled") for job in jobs):
            return jobs
        time.sleep(0.2)


def ordered(jobs: list[dict[str, Any]], outcomes: dict[str, Outcome]) -> None:
    """Each client's jobs were begun in the order in which they were asked for."""
    began = sorted((job["started"], job["id"]) for job in jobs if job["started"])
    numbers: dict[str, list[int]] = {}
    for _, id in began:
        if id in outcomes:
            numbers.setdefault(outcomes[id].client, []).append(outcomes[id].number)
    check(all(each == sorted(each) for each in numbers.values()), f"the order of {len(numbers)} clients' jobs is kept")


def turns(server: Serving) -> None:
    """A client with twenty jobs does not make one with one wait for them."""
    fields = {"prompt": PROMPTS[0], "steps": STEPS}
    for _ in range(20):
        server.call("POST", "/jobs", fields, {"X-Client-Id": "greedy"})
    modest = json.loads(server.call("POST", "/jobs", fields, {"X-Client-Id": "modest"})[2])
    check(modest["position"] <= 2, f"behind twenty jobs of another client, one waits for {modest['position']}")
    settled(server)


def latency(server: Serving, rounds: int = 60) -> None:
    """All that is not the pipeline's own time, which a picture's report has: the way to it, and the PNG and base64."""
    added, own = [], []
    for seed in range(rounds):
        started = time.perf_counter()
        status, _, body = server.call("POST", "/v1/images/generations", {"prompt": PROMPTS[0], "seed": seed})
        seconds = time.perf_counter() - started
        assert status == 200
        image = Image.open(io.BytesIO(base64.b64decode(json.loads(body)["data"][0]["b64_json"])))
        image.load()
        own.append(json.loads(image.text["mlx_imagegen"])["report"]["seconds"]["total"])  # type: ignore[attr-defined]
        added.append(seconds - own[-1])
    ms = sorted(1000 * second for second in added)
    line = (
        f"on top of generate's {statistics.median(own) * 1000:.0f} ms the server takes {statistics.median(ms):.1f} ms"
    )
    check(
        statistics.median(ms) <= 20, f"{line} (median of {rounds}; least {ms[0]:.1f}, 90 % {ms[rounds * 9 // 10]:.1f})"
    )


def first_byte(server: Serving, rounds: int = 100) -> None:
    """Of the progress of a job that waits while another is drawn."""
    running = json.loads(server.call("POST", "/jobs", {"prompt": PROMPTS[0], "steps": 200, "count": 10})[2])
    waiting = json.loads(server.call("POST", "/jobs", {"prompt": PROMPTS[0]})[2])
    while state_of(server, running) != "drawing":
        time.sleep(0.05)
    seconds = []
    for _ in range(rounds):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            started = time.perf_counter()
            request = f"GET /jobs/{waiting['id']}/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
            connection.sendall(request.encode())
            received = b""
            while b"event: progress" not in received:
                received += connection.recv(4096)
            seconds.append(time.perf_counter() - started)
    state = state_of(server, running)
    for job in (waiting, running):
        server.call("DELETE", f"/jobs/{job['id']}")
    settled(server)
    ms = sorted(second * 1000 for second in seconds)
    line = f"first byte of progress: median {statistics.median(ms):.1f} ms, 95 % {ms[94]:.1f} ms, worst {ms[-1]:.1f} ms"
    check(ms[94] < 100 and state == "drawing", f"{line}, while a picture is drawn")


def state_of(server: Serving, job: dict[str, Any]) -> str:
    return str(json.loads(server.call("GET", f"/jobs/{job['id']}")[2])["state"])


VALUES: list[Any] = [
    None, True, False, 0, -1, 10**18, 1e308, 0.5, "", "x", "\ud800", "../../etc/passwd", "/dev/zero", "-1", "nan",
    [], [[]], [None], ["a", 1, {}], {}, {"a": {}}, "A" * 3000, "\N{FOX FACE}" * 50,
    "data:image/png;base64,AAAA", "http://127.0.0.1:1/x.png",
]  # fmt: skip
OWN = (
    "prompt steps width seed count guidance image references mask lora model quant layout sampler timesteps "
    "noise_scale blend_seams strength aspect true_cfg lora_partial nothing"
)
OPENAI = "prompt n size model stream response_format background output_format output_compression partial_images seed"
A1111 = "prompt steps cfg_scale width seed batch_size n_iter sampler_name negative_prompt override_settings enable_hr"
FIELDS = {
    "/jobs": OWN.split(),
    "/v1/images/generations": OPENAI.split(),
    "/v1/images/edits": ["prompt", "image", "images", "mask", "size", "n", "model"],
    "/sdapi/v1/txt2img": A1111.split(),
    "/sdapi/v1/img2img": ["prompt", "init_images", "mask", "denoising_strength"],
    "/sdapi/v1/options": ["sd_model_checkpoint"],
    "/session": ["token"],
}
SENSELESS = [
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"prompt": NaN}', b'{"prompt": "x", "seed": 1e400}',
    bytes(1000),
]  # fmt: skip


def malformed(server: Serving, count: int, seed: int) -> None:
    """Bodies that are no JSON, and JSON whose fields hold what they should not; forms cut short."""
    dice = random.Random(seed)
    statuses: Counter[int] = Counter()
    wrong = []
    for _ in range(count):
        path = dice.choice(list(FIELDS))
        kind = {"Content-Type": dice.choice(["application/json", "text/plain", "multipart/form-data; boundary=x", ""])}
        if dice.random() < 0.25:
            body = dice.choice(SENSELESS)
        else:
            fields = {"prompt": "a hen", "steps": 1, "width": 64, "height": 64}
            fields |= {name: dice.choice(VALUES) for name in dice.sample(FIELDS[path], min(len(FIELDS[path]), 3))}
            body = json.dumps(fields).encode("utf-8", "surrogatepass")
            body = body[: dice.randrange(len(body))] if dice.random() < 0.15 else body
        status, _, answer = server.call("POST", path, body, kind)
        statuses[status] += 1
        explained = b'"message":"' in answer or status < 300
        if status >= 500 or not explained or b"Traceback" in answer:
            wrong.append((path, body[:200], status, answer[:200]))
    for job in json.loads(server.call("GET", "/jobs")[2])["jobs"]:
        server.call("DELETE", f"/jobs/{job['id']}")
    failed = [job for job in settled(server) if job.get("error", {}).get("type") == "server_error"]
    for each in [*wrong, *failed][:5]:
        print("    ", each)
    answers = f"{count} malformed requests: {dict(sorted(statuses.items()))}"
    check(not wrong and not failed, f"{answers}; {len(wrong)} wrong answers, {len(failed)} errors")


def hostile(server: Serving) -> None:
    """What a page of another site, or a name pointed here, would send."""
    heads = [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": f"evil.example:{server.port}"},
        {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://localhost:3000", "Content-Type": "text/plain"},
    ]  # fmt: skip
    before = len(json.loads(server.call("GET", "/jobs")[2])["jobs"])
    places = [("POST", "/jobs"), ("POST", "/v1/images/generations"), ("GET", "/v1/models"), ("GET", "/jobs")]
    statuses = {
        server.call(m, path, {"prompt": "x"} if m == "POST" else None, head)[0] for m, path in places for head in heads
    }
    after = len(json.loads(server.call("GET", "/jobs")[2])["jobs"])
    check(statuses == {403} and before == after, f"hostile origins and hosts: {statuses}, no job begun")


def ends(server: Serving) -> None:
    """In the middle of a picture: kill -9 and a start on the same port, then both signals."""
    port = server.port
    server.call("POST", "/jobs", {"prompt": PROMPTS[0], "steps": 200})
    server.end(signal.SIGKILL)
    started = time.monotonic()
    server = Serving(port=port)
    status = server.call("POST", "/v1/images/generations", {"prompt": PROMPTS[0], "steps": STEPS})[0]
    check(
        status == 200, f"after kill -9: serves on the same port again, {time.monotonic() - started:.1f} s to a picture"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        server.call("POST", "/jobs", {"prompt": PROMPTS[0], "steps": 200})
        time.sleep(0.3)
        seconds = server.end(number)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        held = seconds < 1 and server.process.returncode == 0
        check(
            held, f"{number.name} while drawing: ends after {seconds:.2f} s with {server.process.returncode}, port free"
        )
        server = Serving(port=port)
    server.end(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--malformed", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warm = load(MODEL)
    expected = {}
    for prompt in PROMPTS:
        for seed in range(8):
            result = warm.generate(prompt, seed=seed, steps=STEPS)
            assert isinstance(result, Result)
            expected[prompt, seed] = np.asarray(result.image)
    server = Serving("--max-queue", "30")
    server.call("POST", "/v1/images/generations", {"prompt": PROMPTS[0], "steps": STEPS})
    latency(server)
    first_byte(server)
    turns(server)
    load_test(server, args.requests, args.clients, args.seed, expected)
    malformed(server, args.malformed, args.seed)
    hostile(server)
    ends(server)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
