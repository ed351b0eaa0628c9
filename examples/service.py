"""A small service: one open pipeline behind HTTP, on this machine only, with the standard library only.

    python examples/service.py --model flux-schnell --quant q8 --folder out
    curl -d '{"prompt": "a red fox", "seed": 1}' http://127.0.0.1:8642/generate -o fox.png

Each request has its own thread; the pipeline lets one draw while the others wait. A refused request gets status 400 and
the error message.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

from mlx_imagegen import ImagegenError, Pipeline, load

# What a request may set. `image` and `references` are left out: a path there would read files on this machine.
FIELDS = {"prompt", "seed", "steps", "width", "height", "guidance", "negative_prompt"}
LARGEST_REQUEST_BYTES = 64 * 1024


class Service(ThreadingHTTPServer):
    def __init__(self, pipeline: Pipeline, folder: Path, port: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.pipeline = pipeline
        self.folder = folder
        self.numbers = count(1)
        self.waiting = threading.BoundedSemaphore(16)  # further requests are refused

    def draw(self, fields: dict[str, Any]) -> bytes:
        """The picture as PNG bytes; it is also saved, with its record."""
        result = self.pipeline.generate(fields.pop("prompt"), **fields)
        return result.save(self.folder / f"{next(self.numbers):05}-{result.seed}.png").read_bytes()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.answer(200, {"model": self.server.pipeline.model.requested_as})

    def do_POST(self) -> None:
        if not self.server.waiting.acquire(blocking=False):
            self.answer(503, {"error": "too many requests are waiting; try again later"})
            return
        try:
            picture = self.server.draw(self.fields())
        except ImagegenError as error:
            self.answer(400, {"error": str(error)})
        except ValueError as error:
            self.answer(400, {"error": f"the request cannot be read: {error}"})
        else:
            self.send("image/png", 200, picture)
        finally:
            self.server.waiting.release()

    def fields(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length", 0))
        if length > LARGEST_REQUEST_BYTES:
            raise ValueError(f"it has {length} bytes, at most {LARGEST_REQUEST_BYTES} are read")
        fields = json.loads(self.rfile.read(length))
        if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
            raise ValueError('it must be a JSON object with a "prompt"')
        if unknown := sorted(fields.keys() - FIELDS):
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(sorted(FIELDS))}")
        return fields

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send("application/json", status, json.dumps(body).encode())

    def send(self, kind: str, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="flux-demo")
    parser.add_argument("--quant")
    parser.add_argument("--folder", type=Path, default=Path("out"))
    parser.add_argument("--port", type=int, default=8642)
    args = parser.parse_args(arguments)

    args.folder.mkdir(parents=True, exist_ok=True)
    with Service(load(args.model, quant=args.quant), args.folder, args.port) as service:
        print(f"http://127.0.0.1:{service.server_port}/generate", flush=True)
        service.serve_forever()


if __name__ == "__main__":
    main()
