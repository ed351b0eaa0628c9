"""OpenAI's Images API: generations, edits, models; streamed with unfinished pictures if asked.

In: its fields, and generate()'s parameters next to them. Out: its answers, with each picture's seed and record as well.
Must not know: how jobs run.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import RequestError
from .answers import (
    HEARTBEAT_SECONDS,
    JSON,
    client_of,
    comment,
    event,
    events,
    refusal_of,
    route,
    service_of,
    until_finished,
)
from .bodies import read_body
from .catalogue import Entry
from .edits import edit_fields
from .jobs import CANCELLED, Failure, Job
from .pictures import OutputFormat, as_base64, encode, encode_image, output_format, shortened

# What OpenAI's service takes and these models have no use for.
WITHOUT_EFFECT = (
    "quality", "style", "moderation", "input_fidelity", "user", "safety_identifier", "complexity", "prompt_rewriter",
)  # fmt: skip
MOST_PARTIAL_IMAGES = 3
# Every picture is free here; clients read the fields.
USAGE = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
CANCELLED_FAILURE = Failure("the job was cancelled.", "cancelled", 409)


@dataclass(frozen=True)
class Wish:
    """How the answer is to look."""

    stream: bool
    partial_images: int
    as_url: bool
    form: OutputFormat


async def generations(request: Request) -> Response:
    service_of(request).check_room()
    return await _answer(request, await read_body(request), "image_generation")


async def edits(request: Request) -> Response:
    service = service_of(request)
    service.check_room()
    fields = await asyncio.to_thread(edit_fields, await read_body(request), service.catalogue)
    return await _answer(request, fields, "image_edit")


async def models(request: Request) -> Response:
    entries = await asyncio.to_thread(service_of(request).catalogue.models)
    return JSON({"object": "list", "data": [_described(entry) for entry in entries.values()]})


async def model(request: Request) -> Response:
    entry = await asyncio.to_thread(service_of(request).catalogue.model, request.path_params["name"])
    return JSON(_described(entry))


ROUTES = [
    route("/v1/images/generations", generations, "POST"),
    route("/v1/images/edits", edits, "POST"),
    route("/v1/models", models),
    route("/v1/models/{name:path}", model),
]


async def _answer(request: Request, fields: dict[str, Any], kind: str) -> Response:
    service = service_of(request)
    wish = _wish(fields)
    client = client_of(request, fields.pop("safety_identifier", None) or fields.pop("user", None))
    for name in WITHOUT_EFFECT:
        fields.pop(name, None)
    fields |= _size(fields.pop("size", None))
    if "n" in fields:
        fields["count"] = fields.pop("n")
    job = await asyncio.to_thread(service.accept, fields, client, wish.partial_images)
    headers = {"X-Job-Id": job.id}
    if wish.stream:
        return events(_streamed(request, job, wish, kind), headers)
    await until_finished(request, job)
    if job.state == CANCELLED or job.failure:
        return refusal_of(job.failure or CANCELLED_FAILURE)
    pictures = [await _picture(request, job, index, wish) for index in range(len(job.results))]
    shown = _shown(job.results[0].image.size, wish)
    return JSON({"created": int(job.created), "data": pictures, **shown, "usage": USAGE}, headers=headers)


def _wish(fields: dict[str, Any]) -> Wish:
    stream, partial = fields.pop("stream", None), fields.pop("partial_images", None)
    form = output_format(fields.pop("output_format", None), fields.pop("output_compression", None))
    response, background = fields.pop("response_format", None), fields.pop("background", None)
    if response not in (None, "b64_json", "url"):
        raise RequestError(f"response_format {shortened(response)}: give b64_json or url.")
    if background not in (None, "auto", "opaque"):
        raise RequestError(f"background {shortened(background)}: these models draw no transparency; give opaque.")
    partial = int(partial) if isinstance(partial, str) and partial.isdecimal() else partial
    if isinstance(partial, bool) or partial not in (None, *range(MOST_PARTIAL_IMAGES + 1)):
        raise RequestError(f"partial_images {shortened(partial)}: give a whole number from 0 to {MOST_PARTIAL_IMAGES}.")
    if stream not in (None, True, False, "true", "false"):
        raise RequestError(f"stream {shortened(stream)}: give true or false.")
    streams = stream in (True, "true")
    return Wish(streams, (partial or 0) if streams else 0, response == "url", form)


def _size(size: Any) -> dict[str, int]:
    if size in (None, "", "auto"):
        return {}
    sides = size.lower().split("x") if isinstance(size, str) else []
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        raise RequestError(f"size {shortened(size)}: give WIDTHxHEIGHT, such as 1024x768, or auto.")
    return {"width": int(sides[0]), "height": int(sides[1])}


async def _streamed(request: Request, job: Job, wish: Wish, kind: str) -> AsyncIterator[bytes]:
    """A client that goes away ends this in its middle, and the job with it."""
    service, finished, unfinished = service_of(request), 0, 0
    try:
        async for _ in job.changes(HEARTBEAT_SECONDS):
            yield comment(_state(service.describe(job)))
            for index in range(unfinished, len(job.partials)):
                image = job.partials[index]
                data = await asyncio.to_thread(encode_image, image, wish.form)
                extra: dict[str, Any] = {"partial_image_index": index}
                yield _event(f"{kind}.partial_image", data, wish, image.size, extra)
                unfinished = index + 1
            for index in range(finished, len(job.results)):
                result = job.results[index]
                data = await asyncio.to_thread(encode, result, wish.form)
                extra = {"usage": USAGE, "seed": result.seed, "record": result.record}
                yield _event(f"{kind}.completed", data, wish, result.image.size, extra)
                finished = index + 1
        if failure := job.failure or (CANCELLED_FAILURE if job.state == CANCELLED else None):
            yield event("error", {"error": failure.describe() | {"param": None, "code": None}})
    finally:
        job.partials.clear()
        if not job.finished:
            service.cancel(job)


def _event(name: str, data: bytes, wish: Wish, size: tuple[int, int], extra: Mapping[str, Any]) -> bytes:
    common = {"type": name, "b64_json": as_base64(data), "created_at": int(time.time()), **_shown(size, wish)}
    return event(name, common | dict(extra))


def _shown(size: tuple[int, int], wish: Wish) -> dict[str, str]:
    shown = f"{size[0]}x{size[1]}"
    return {"size": shown, "quality": "auto", "background": "opaque", "output_format": wish.form.name}


def _state(described: Mapping[str, Any]) -> str:
    left = f", {described['seconds_left']} s left" if described["seconds_left"] else ""
    return f"{described['state']}, step {described['step']} of {described['steps']}{left}"


async def _picture(request: Request, job: Job, index: int, wish: Wish) -> dict[str, Any]:
    result = job.results[index]
    extra = {"seed": result.seed, "record": result.record}
    if wish.as_url:
        path = f"/pictures/{job.id}/{index}.{wish.form.name}"
        return {"url": str(request.base_url.replace(path=path)), **extra}
    data = await asyncio.to_thread(encode, result, wish.form)
    return {"b64_json": as_base64(data), **extra}


def _described(entry: Entry) -> dict[str, Any]:
    manifest, defaults = entry.manifest, entry.manifest.defaults
    return {
        "id": entry.name, "object": "model", "created": 0, "owned_by": "mlx-imagegen", "title": manifest.title,
        "edits": manifest.edits, "steps": defaults.steps, "size": f"{defaults.width}x{defaults.height}",
    }  # fmt: skip
