"""Our own interface, which the page uses: jobs with their progress as events, pictures, models, and the page's login.

In: generate()'s parameters as a JSON object, pictures as data URLs, models and LoRAs by name.
Must not know: how jobs run.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..families import family_spec
from ..hub.manifest import Manifest
from ..machine import physical_bytes
from ..request.parameters import SAMPLING_FIELDS
from .answers import HEARTBEAT_SECONDS, JSON, client_of, comment, event, events, refusal, route, service_of
from .bodies import read_json
from .catalogue import Entry, fits
from .jobs import Job
from .pictures import as_base64, encode, output_format, preview
from .replay import command_line, python_code
from .requests import TAKEN
from .safety import COOKIE, Access

OF_SOME_MODELS = ("blend_seams", "layout", "keep_original_aspect", "layers")  # their manifests name them under `takes`
SESSION_SECONDS = 30 * 24 * 60 * 60


async def create_job(request: Request) -> Response:
    service = service_of(request)
    service.check_room()
    fields = await read_json(request)
    job = await asyncio.to_thread(service.accept, fields, client_of(request), 0, True)
    return JSON(_described(request, job), 202, {"Location": f"/jobs/{job.id}"})


async def list_jobs(request: Request) -> Response:
    service = service_of(request)
    return JSON({"jobs": [service.describe(job) for job in service.store.all()]})


async def show_job(request: Request) -> Response:
    return JSON(_described(request, _job(request)))


async def cancel_job(request: Request) -> Response:
    job = _job(request)
    service_of(request).cancel(job)
    return JSON(_described(request, job))


async def job_events(request: Request) -> Response:
    job = _job(request)
    return events(_events(request, job, request.query_params.get("previews") != "no"))


async def show_picture(request: Request) -> Response:
    job, index = _job(request), request.path_params["index"]
    form = output_format(request.path_params["form"])
    if index >= len(job.results):
        raise HTTPException(404, f"the job has no picture {index}.")
    result, number = job.results[index], request.path_params.get("layer", 0)
    if number > len(result.layers):
        raise HTTPException(404, f"the picture has no layer {number}.")
    shown = replace(result, image=result.layers[number - 1]) if number else result
    data = await asyncio.to_thread(encode, shown, form)
    return Response(data, media_type=form.media_type, headers={"Cache-Control": "private, max-age=3600, immutable"})


async def list_models(request: Request) -> Response:
    catalogue = service_of(request).catalogue
    entries, loras = await asyncio.gather(asyncio.to_thread(catalogue.models), asyncio.to_thread(catalogue.loras))
    limits = service_of(request).options.limits
    return JSON(
        {
            "default": catalogue.default.name,
            "models": [_model(entry) for entry in entries.values()],
            "loras": [{"name": name, "family": lora.family} for name, lora in loras.items()],
            "parameters": [
                {
                    "name": row.name, "kind": row.kind.description, "help": row.help, "group": row.group,
                    "limits": row.limits, "default": row.default_text,
                }
                for row in TAKEN.values()
            ],
            "limits": {"pixels": limits.pixels, "count": limits.count, "steps": limits.steps},
            "memory_bytes": physical_bytes(),
        }
    )  # fmt: skip


async def model_fits(request: Request) -> Response:
    entry = await asyncio.to_thread(service_of(request).catalogue.model, request.path_params["name"])
    found = await asyncio.to_thread(fits, entry.source)
    return JSON({"model": entry.name, "fits": list(map(asdict, found))})


async def open_session(request: Request) -> Response:
    """The token once, for a cookie: a page's event streams and pictures cannot send it."""
    access: Access = request.app.state.access
    token = (await read_json(request)).get("token")
    if access.token is not None and not (isinstance(token, str) and access.matches(token)):
        return refusal(401, "this is not the token.")
    response = JSON({"ok": True})
    if access.token is not None:
        response.set_cookie(COOKIE, access.session(), max_age=SESSION_SECONDS, httponly=True, samesite="strict")
    return response


ROUTES = [
    route("/jobs", create_job, "POST"),
    route("/jobs", list_jobs),
    route("/jobs/{id}", show_job),
    route("/jobs/{id}", cancel_job, "DELETE"),
    route("/jobs/{id}/events", job_events),
    route("/pictures/{id}/{index:int}.layer{layer:int}.{form}", show_picture),
    route("/pictures/{id}/{index:int}.{form}", show_picture),
    route("/models", list_models),
    route("/models/{name:path}/fits", model_fits),
    route("/session", open_session, "POST"),
]


def _job(request: Request) -> Job:
    job = service_of(request).store.get(request.path_params["id"])
    if job is None:
        raise HTTPException(404, "there is no such job, or its results are not kept any more.")
    return job


async def _events(request: Request, job: Job, previews: bool) -> AsyncIterator[bytes]:
    """`progress` after each change, `preview` with a small picture; the last event is named after the last state."""
    shown = None
    async for changed in job.changes(HEARTBEAT_SECONDS):
        if previews:
            job.watch()
        if not changed:
            yield comment("still here")
        elif job.finished:
            yield event(job.state, _described(request, job))
        else:
            yield event("progress", service_of(request).describe(job))
            if previews and job.preview is not None and job.preview is not shown:
                shown = job.preview
                data = await asyncio.to_thread(preview, shown)
                yield event("preview", {"image": f"data:image/jpeg;base64,{as_base64(data)}"})


def _described(request: Request, job: Job) -> dict[str, Any]:
    results = [
        {
            "url": f"/pictures/{job.id}/{index}.png",
            "layer_urls": [f"/pictures/{job.id}/{index}.layer{n}.png" for n, _ in enumerate(result.layers, 1)],
            "seed": result.seed,
            "width": result.image.width,
            "height": result.image.height,
            "record": result.record,
            "command": command_line(result.record),
            "python": python_code(result.record),
        }
        for index, result in enumerate(job.results)
    ]
    return service_of(request).describe(job) | {"prompt": job.prompt, "results": results}


def _model(entry: Entry) -> dict[str, Any]:
    manifest, defaults = entry.manifest, entry.manifest.defaults
    return {
        "name": entry.name,
        "title": manifest.title,
        "family": entry.family,
        "edits": manifest.edits,
        "references_least": manifest.extras.get("references_least", 0),
        "guidance": manifest.guidance,
        "refuses": refused_by(manifest),
        "licence": manifest.licence,
        "note": manifest.note,
        "steps": defaults.steps,
        "width": defaults.width,
        "height": defaults.height,
        "default_guidance": defaults.guidance,
        "packed": entry.is_packed,
    }


def refused_by(manifest: Manifest) -> list[str]:
    """Parameters that the model does not take."""
    takes = set(manifest.extras.get("takes", ()))
    sampling = () if "sampling" in manifest.extras else SAMPLING_FIELDS
    second_branch = {"cfg": ("true_cfg",), "never": ("true_cfg", "negative_prompt")}.get(manifest.guidance, ())
    whole_prompt = ("max_sequence_length",) if manifest.extras.get("whole_prompt") else ()
    beyond = {"image", "negative_prompt", "guidance"} - family_spec(manifest.family).capabilities
    return sorted({*OF_SOME_MODELS, *sampling, *second_branch, *whole_prompt, *beyond} - takes)
