"""AUTOMATIC1111's API, as far as its clients call it: Open WebUI, SillyTavern and others.

Must not know: how jobs run, what the fields mean (a1111_fields.py).
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import RequestError
from .a1111_fields import SAMPLER_NAMES, info, read_fields, timestamp
from .answers import JSON, client_of, refusal_of, route, service_of, until_finished
from .bodies import read_json
from .jobs import DRAWING, Job
from .pictures import OutputFormat, as_base64, encode, encode_image

NAME = "a1111"  # of its clients, for turns and interrupts
PNG = OutputFormat()
PREFIX = "/sdapi/v1"
SCHEDULER = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}
NO_UPSCALER = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}
# What clients ask for at their start, and how it is route here.
FIXED: dict[str, list[Any]] = {
    "samplers": [{"name": name, "aliases": [], "options": {}} for name in SAMPLER_NAMES],
    "schedulers": [SCHEDULER],
    "upscalers": [NO_UPSCALER],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "sd-modules": [],
}


async def txt2img(request: Request) -> Response:
    return await _draw(request, await _body(request))


async def img2img(request: Request) -> Response:
    body = await _body(request)
    if not isinstance(body.get("init_images"), list) or not body["init_images"]:
        raise RequestError("init_images is missing: send the picture to change.")
    return await _draw(request, body)


async def _body(request: Request) -> dict[str, Any]:
    service_of(request).check_room()
    return await read_json(request)


async def _draw(request: Request, body: Mapping[str, Any]) -> Response:
    service, client = service_of(request), client_of(request, NAME)
    fields, notes = await asyncio.to_thread(read_fields, body, request.app.state.checkpoint, service.catalogue)
    job = await asyncio.to_thread(service.accept, fields, client)
    await until_finished(request, job)
    if job.failure:
        return refusal_of(job.failure)
    sent = job.results if body.get("send_images", True) else []
    pictures = [as_base64(await asyncio.to_thread(encode, result, PNG)) for result in sent]
    parameters = {name: value for name, value in body.items() if name not in ("init_images", "mask")}
    return JSON({"images": pictures, "parameters": parameters, "info": json.dumps(info(job, body, notes))})


async def progress(request: Request) -> Response:
    job = _own_job(request)
    image = None
    if job and request.query_params.get("skip_current_image", "false").lower() != "true":
        job.watch()
        image = job.preview
    current = as_base64(await asyncio.to_thread(encode_image, image, PNG)) if image else None
    return JSON(
        {
            "progress": max(job.fraction, 0.01) if job else 0.0,
            "eta_relative": (job.seconds_left or 0.0) if job else 0.0,
            "state": _state(job),
            "current_image": current,
            "textinfo": None,
        }
    )


def _own_job(request: Request) -> Job | None:
    """Of its own clients' jobs the one that is being drawn, else the one that waits longest."""
    client = client_of(request, NAME)
    jobs = [job for job in service_of(request).store.all() if job.client == client and not job.finished]
    return next((job for job in jobs if job.state == DRAWING), jobs[-1] if jobs else None)


def _state(job: Job | None) -> dict[str, Any]:
    return {
        "skipped": False,
        "interrupted": job is not None and job.cancel_requested.is_set(),
        "stopping_generation": False,
        "job": "txt2img" if job else "",
        "job_count": job.pictures if job else 0,
        "job_timestamp": timestamp(job.created if job else 0),
        "job_no": max(0, job.progress.picture - 1) if job else 0,
        "sampling_step": job.progress.step if job else 0,
        "sampling_steps": job.progress.steps if job else 0,
    }


async def interrupt(request: Request) -> Response:
    """The one of its own clients' jobs that is being drawn."""
    service, current = service_of(request), service_of(request).worker.current
    if current is not None and current.client == client_of(request, NAME):
        service.cancel(current)
    return JSON({})


async def models(request: Request) -> Response:
    names = await asyncio.to_thread(service_of(request).catalogue.models)
    unknown = {"hash": None, "sha256": None, "config": None}
    return JSON([{"title": name, "model_name": name, "filename": name} | unknown for name in names])


async def loras(request: Request) -> Response:
    names = await asyncio.to_thread(service_of(request).catalogue.loras)
    return JSON([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])


async def options(request: Request) -> Response:
    default = service_of(request).catalogue.default.name
    return JSON({"sd_model_checkpoint": request.app.state.checkpoint or default, "samples_format": "png"})


async def set_options(request: Request) -> Response:
    """The model of requests that name none; all other options have no meaning here."""
    if name := (await read_json(request)).get("sd_model_checkpoint"):
        request.app.state.checkpoint = (await asyncio.to_thread(service_of(request).catalogue.model, name)).name
    return JSON(None)


async def refresh(request: Request) -> Response:
    service_of(request).catalogue.refresh()
    return JSON(None)


async def fixed(request: Request) -> Response:
    return JSON(FIXED[request.url.path.rpartition("/")[2]])


ROUTES = [
    route(f"{PREFIX}/txt2img", txt2img, "POST"),
    route(f"{PREFIX}/img2img", img2img, "POST"),
    route(f"{PREFIX}/progress", progress),
    route(f"{PREFIX}/interrupt", interrupt, "POST"),
    route(f"{PREFIX}/sd-models", models),
    route(f"{PREFIX}/loras", loras),
    route(f"{PREFIX}/options", options),
    route(f"{PREFIX}/options", set_options, "POST"),
    route(f"{PREFIX}/refresh-checkpoints", refresh, "POST"),
    route(f"{PREFIX}/refresh-loras", refresh, "POST"),
    *(route(f"{PREFIX}/{name}", fixed) for name in FIXED),
]
