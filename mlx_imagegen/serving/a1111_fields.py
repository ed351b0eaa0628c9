"""A1111's fields -> generate()'s parameters, and back: what its clients read of a finished job.

Its clients send every field they have, whatever the model is: what a model cannot use is left out, and `info` says so.
Must not know: HTTP, how jobs run.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from ..errors import RequestError
from ..hub.manifest import Manifest
from ..request.options import SAMPLERS, check_types
from .catalogue import Catalogue, Entry
from .jobs import Job
from .pictures import read_picture, shortened

LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]+))?[^<>]*>")  # in a prompt
SAME = ("steps", "width", "height")
WITHOUT_EFFECT = ("restore_faces", "tiling", "styles", "subseed_strength", "alwayson_scripts", "script_name")
SAMPLER_NAMES = ("Euler", *SAMPLERS)  # a model's own, and those of models that have several
USUAL_STRENGTH = 0.75
MOST_OF_EACH = 1000


def read_fields(body: Mapping[str, Any], chosen: str | None, catalogue: Catalogue) -> tuple[dict[str, Any], list[str]]:
    """The parameters, and notes on what was left out. `chosen`: the model where the fields name none."""
    if body.get("enable_hr"):
        raise RequestError("enable_hr: there is no second pass at a larger size; ask for the size itself.")
    notes: list[str] = []
    settings = body.get("override_settings")
    name = settings.get("sd_model_checkpoint") if isinstance(settings, Mapping) else None
    entry = catalogue.model(name or chosen)
    fields = {name: body[name] for name in SAME if body.get(name) is not None}
    fields |= {"model": entry.name, "count": _count(body)} | _prompt(body.get("prompt"))
    fields |= {} if body.get("seed") in (None, -1) else {"seed": body["seed"]}
    fields |= _guidance(body, entry.manifest, notes) | _sampler(body, entry.manifest, notes)
    if body.get("init_images"):
        fields |= _pictures(body, entry)
    notes += [f"{name} has no effect here" for name in WITHOUT_EFFECT if body.get(name)]
    return fields, notes


def _count(body: Mapping[str, Any]) -> int:
    numbers = [body.get(name) or 1 for name in ("batch_size", "n_iter")]
    if not all(isinstance(number, int) and 0 < number <= MOST_OF_EACH for number in numbers):
        raise RequestError(f"batch_size and n_iter {shortened(numbers)}: give whole numbers from 1.")
    return int(numbers[0] * numbers[1])


def _prompt(prompt: Any) -> dict[str, Any]:
    """LoRAs stand in the prompt, as in <lora:NAME:0.8>."""
    if not isinstance(prompt, str):
        return {"prompt": prompt}
    loras = [[name.strip(), _scale(scale)] for name, scale in LORA.findall(prompt)]
    return {"prompt": LORA.sub("", prompt).strip()} | ({"lora": loras} if loras else {})


def _scale(text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        raise RequestError(f"lora: the scale {shortened(text)} is no number.") from None


def _guidance(body: Mapping[str, Any], manifest: Manifest, notes: list[str]) -> dict[str, Any]:
    """cfg_scale and negative_prompt, as far as the model has use for them."""
    scale, negative = body.get("cfg_scale"), body.get("negative_prompt")
    check_types({"guidance": scale, "negative_prompt": negative})
    found: dict[str, Any] = {}
    if manifest.guidance in ("none", "never"):
        notes += ["this model takes no guidance: cfg_scale has no effect"] if scale else []
    elif scale is not None:
        found["guidance"] = scale
    effective = manifest.defaults.guidance if scale is None else scale
    if negative and manifest.guidance == "cfg" and effective > 1:
        return found | {"negative_prompt": negative}
    notes += ["this model draws without a second branch: negative_prompt has no effect"] if negative else []
    return found


def _sampler(body: Mapping[str, Any], manifest: Manifest, notes: list[str]) -> dict[str, Any]:
    name = body.get("sampler_name") or body.get("sampler_index")
    check_types({"sampler": name or None})
    if name in SAMPLERS and "sampling" in manifest.extras:
        return {"sampler": name}
    if name and name != SAMPLER_NAMES[0]:
        notes.append(f"this model has its own sampler: {shortened(name)} has no effect")
    return {}


def _pictures(body: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    pictures = [read_picture(picture, "init_images") for picture in body["init_images"]]
    strength = body.get("denoising_strength", USUAL_STRENGTH)
    if body.get("mask") is None:
        return {"references": pictures} if entry.manifest.edits else {"image": pictures[0], "strength": strength}
    mask = read_picture(body["mask"], "mask").convert("L")
    if body.get("inpainting_mask_invert"):
        mask = mask.point(lambda level: 255 - level)
    return {"image": pictures[0], "mask": mask, "strength": strength}


def info(job: Job, body: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """What A1111 says of a finished request, with our records and notes."""
    records = [result.record for result in job.results]
    first = records[0] if records else {}
    return {
        "prompt": job.prompt,
        "all_prompts": [record["prompt"] for record in records],
        "negative_prompt": first.get("negative_prompt", ""),
        "all_negative_prompts": [record.get("negative_prompt", "") for record in records],
        "seed": first.get("seed", -1),
        "all_seeds": [record["seed"] for record in records],
        "width": first.get("width"),
        "height": first.get("height"),
        "sampler_name": first.get("sampler", SAMPLER_NAMES[0]),
        "cfg_scale": first.get("guidance"),
        "steps": first.get("steps"),
        "batch_size": body.get("batch_size") or 1,
        "sd_model_name": job.model,
        "job_timestamp": timestamp(job.created),
        "infotexts": [_infotext(record) for record in records],
        "interrupted": len(records) < job.pictures,
        "notes": [*notes, *job.notes],
        "records": records,
    }


def timestamp(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


def _infotext(record: Mapping[str, Any]) -> str:
    """A picture's parameters in the form that A1111 writes into its files."""
    negative = f"\nNegative prompt: {record['negative_prompt']}" if record.get("negative_prompt") else ""
    values = {
        "Steps": record["steps"],
        "Sampler": record.get("sampler", SAMPLER_NAMES[0]),
        "CFG scale": record.get("guidance"),
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": record["model"],
    }
    return f"{record['prompt']}{negative}\n{', '.join(f'{name}: {value}' for name, value in values.items())}"
