"""What an agent may call: generate, edit, check, cancel, plan, models. Long work is started, then asked after.

In: a tool's name and arguments. Out: an `Answer`: facts, and small pictures to look at. Finished pictures are written
to the output folder; pictures to change are read from the folders that were allowed.
Must not know: MCP's messages.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, RequestError
from ..machine import GB, physical_bytes
from ..paths import expanded
from ..request import kinds
from ..request.kinds import Kind
from .catalogue import fits
from .edits import edit_fields
from .jobs import Job
from .pictures import preview, shortened
from .requests import TAKEN
from .service import Service

CLIENT = "mcp"
WAIT_SECONDS, LONGEST_WAIT = 20.0, 50.0  # hosts give up after a minute
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FILE = {"type": "string", "description": "a file of the output folder or of an allowed one, by its path or name"}
# The JSON types of arguments; for other kinds the help of the parameter is all there is.
SCHEMAS: dict[Kind, dict[str, Any]] = {
    kinds.TEXT: {"type": "string"},
    kinds.SHAPE: {"type": "string"},
    kinds.WHOLE_NUMBER: {"type": "integer"},
    kinds.NUMBER: {"type": "number"},
    kinds.SWITCH: {"type": "boolean"},
    kinds.SEEDS: {"type": "integer"},
    kinds.NUMBERS: {"type": "array", "items": {"type": "number"}},
    kinds.LORAS: {"type": "array", "items": {"type": ["string", "array"]}, "description": "names, or [name, scale]"},
}
SECONDS = {
    "type": "number", "minimum": 0, "maximum": LONGEST_WAIT, "default": WAIT_SECONDS,
    "description": "how long to wait for the pictures; what takes longer is asked after with check",
}  # fmt: skip
MASK = "white where the first image is to change; of its size"
JOB = {"type": "string", "description": "the job's id"}


@dataclass(frozen=True)
class Answer:
    facts: dict[str, Any]
    pictures: tuple[bytes, ...] = ()  # small JPEGs


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    schema: dict[str, Any]
    run: Callable[[Mapping[str, Any]], Awaitable[Answer]] = field(repr=False)


class Tools:
    def __init__(self, service: Service, output: Path, allowed: tuple[Path, ...] = ()):
        self.service = service
        self.output = output
        self.allowed = (output, *allowed)
        self._written: dict[str, list[str]] = {}  # by job

    def all(self) -> list[Tool]:
        own = parameter_schemas()
        edit = own | {"images": {"type": "array", "items": FILE}, "mask": FILE | {"description": MASK}}
        check, plan = {"job": JOB, "wait": SECONDS}, {"model": own["model"]}
        return [
            Tool("generate", "Makes pictures from a prompt and writes them.", schema(own, ["prompt"]), self.generate),
            Tool("edit", "Changes pictures as a prompt says.", schema(edit, ["prompt", "images"]), self.edit),
            Tool("check", "How far a job is; waits a while for it.", schema(check, ["job"]), self.check),
            Tool("cancel", "Stops a job.", schema({"job": JOB}, ["job"]), self.cancel),
            Tool("plan", "Whether a model fits this machine, as it is and quantized.", schema(plan), self.plan),
            Tool("models", "The models and LoRAs on this machine.", schema({}), self.models),
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        tool = next((tool for tool in self.all() if tool.name == name), None)
        if tool is None:
            raise RequestError(f"no tool is called {shortened(name)}.")
        if unknown := sorted(arguments.keys() - tool.schema["properties"].keys()):
            known = ", ".join(tool.schema["properties"])
            raise RequestError(f"{name} has no argument {shortened(unknown[0])}; known: {known}.")
        return await tool.run(arguments)

    async def generate(self, arguments: Mapping[str, Any]) -> Answer:
        return await self._start(dict(arguments))

    async def edit(self, arguments: Mapping[str, Any]) -> Answer:
        fields, images = dict(arguments), arguments.get("images")
        if not isinstance(images, list) or not images:
            raise RequestError("images is missing: name the files to change.")
        fields["images"] = [await asyncio.to_thread(self._read, image) for image in images]
        if fields.get("mask") is not None:
            fields["mask"] = await asyncio.to_thread(self._read, fields["mask"])
        return await self._start(await asyncio.to_thread(edit_fields, fields, self.service.catalogue))

    async def check(self, arguments: Mapping[str, Any]) -> Answer:
        return await self._waited(self._job(arguments), _seconds(arguments.get("wait")))

    async def cancel(self, arguments: Mapping[str, Any]) -> Answer:
        job = self._job(arguments)
        self.service.cancel(job)
        return await self._waited(job, 1.0)

    async def plan(self, arguments: Mapping[str, Any]) -> Answer:
        entry = await asyncio.to_thread(self.service.catalogue.model, arguments.get("model"))
        rows = [
            {"quant": fit.quant or "none", "peak_gb": round(fit.peak_bytes / GB, 2), "fits": fit.fits}
            for fit in await asyncio.to_thread(fits, entry.source)
        ]
        return Answer({"model": entry.name, "memory_gb": round(physical_bytes() / GB, 1), "plans": rows})

    async def models(self, _: Mapping[str, Any]) -> Answer:
        catalogue = self.service.catalogue
        entries, loras = await asyncio.to_thread(catalogue.models), await asyncio.to_thread(catalogue.loras)
        rows = [
            {
                "model": entry.name, "title": entry.manifest.title, "edits": entry.manifest.edits,
                "steps": entry.manifest.defaults.steps,
                "size": f"{entry.manifest.defaults.width}x{entry.manifest.defaults.height}",
            }
            for entry in entries.values()
        ]  # fmt: skip
        return Answer({"default": catalogue.default.name, "models": rows, "loras": list(loras)})

    async def _start(self, fields: dict[str, Any]) -> Answer:
        seconds = _seconds(fields.pop("wait", None))
        return await self._waited(await asyncio.to_thread(self.service.accept, fields, CLIENT), seconds)

    async def _waited(self, job: Job, seconds: float) -> Answer:
        try:
            await asyncio.wait_for(job.wait(), seconds)
        except TimeoutError:
            return Answer(self.service.describe(job) | {"next": f"call check with job {job.id}"})
        paths = await asyncio.to_thread(self._write, job)
        small = tuple([await asyncio.to_thread(preview, result.image) for result in job.results])
        seeds = [result.seed for result in job.results]
        return Answer(self.service.describe(job) | {"files": paths, "seeds": seeds}, small)

    def _write(self, job: Job) -> list[str]:
        """Once for each job, under names that are free."""
        if job.id not in self._written:
            self.output.mkdir(parents=True, exist_ok=True)
            at = time.strftime("%Y%m%d-%H%M%S", time.localtime(job.created))
            paths = [result.save(free_path(self.output, f"{at}-{result.seed}")) for result in job.results]
            self._written[job.id] = list(map(str, paths))
        return self._written[job.id]

    def _job(self, arguments: Mapping[str, Any]) -> Job:
        job = self.service.store.get(str(arguments.get("job")))
        if job is None:
            raise RequestError(f"there is no job {shortened(arguments.get('job'))}, or it is not kept any more.")
        return job

    def _read(self, name: Any) -> bytes:
        """A file's bytes, if it lies in an allowed folder; links out of it do not count."""
        if not isinstance(name, str):
            raise RequestError(f"image {shortened(name)}: give a file's path or name.")
        folders = [expanded(folder).resolve() for folder in self.allowed]
        places = [(folder / expanded(name)).resolve() for folder in folders]
        inside = [place for place in places if any(place.is_relative_to(folder) for folder in folders)]
        if not inside or Path(name).suffix.lower() not in PICTURE_SUFFIXES:
            shown = ", ".join(map(str, self.allowed))
            raise RequestError(
                f"{shortened(name)} is no picture in {shown}; start mcp with --images FOLDER to allow more."
            )
        found = next((place for place in inside if place.is_file()), None)
        if found is None:
            raise MissingFileError(f"{shortened(name)} is not there.")
        return found.read_bytes()


def parameter_schemas() -> dict[str, dict[str, Any]]:
    """Of the parameter table, and how long to wait. Pictures are an edit's own."""
    rows = [row for row in TAKEN.values() if row.kind not in (kinds.PICTURE, kinds.PICTURES)]
    return {row.name: {"description": row.help} | SCHEMAS.get(row.kind, {}) for row in rows} | {"wait": SECONDS}


def schema(properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    wanted = {"required": list(required)} if required else {}
    return {"type": "object", "properties": dict(properties), **wanted, "additionalProperties": False}


def free_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def _seconds(wait: Any) -> float:
    if wait is None:
        return WAIT_SECONDS
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= LONGEST_WAIT:
        raise RequestError(f"wait {shortened(wait)}: give seconds from 0 to {LONGEST_WAIT:.0f}.")
    return float(wait)
